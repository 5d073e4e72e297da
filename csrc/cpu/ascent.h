// What every kind of step is made of: the gradient by the pixels, the state, the sums over a
// sample, and the walk of the passes over the samples. Included by one file per kind of step.
//
// L2 sums |g|^2, <d,g> and |d|^2 in one pass: the length after the move, |d + s g|, follows from
// them. Lanes sum a tile in float, tiles are added in double and in a fixed order, so results do
// not depend on the thread count.
#pragma once
#include <cfloat>

#include "tiles.h"

namespace FA_ISA {
namespace {

constexpr double kTiny = 1e-30;  // as TINY in kernels/reference.py

// How many elements ahead of a load its prefetch goes. Two Zen 4 cores that only load reached
// 40 GB/s; with a prefetch 512 elements ahead they reached 50, with 256 or 1024 ahead 43.
constexpr int64_t kAhead = 512;

inline vf to_box(vf v) { return clamp(v, splat(0.0f), splat(1.0f)); }

// The state is the iterate (float) or the perturbation (float16). Loads give the perturbation,
// stores return the image of what was stored.
template <typename N> inline vf load_delta(const float *x, vf clean, N n) {
  return load(x, n) - clean;
}
template <typename N> inline vf store_delta(float *x, vf d, vf clean, N n) {
  const vf v = to_box(clean + d);
  store(x, v, n);
  return v;
}
inline float delta_of(float x, float clean) { return x - clean; }
#if FA_HAS_F16
template <typename N> inline vf load_delta(const f16 *x, vf, N n) { return load(x, n); }
template <typename N> inline vf store_delta(f16 *x, vf d, vf clean, N n) {
  const vh half = toward_zero(clamp(d, -clean, 1.0f - clean));
  std::memcpy(x, &half, static_cast<size_t>(n) * sizeof(f16));
  return to_box(clean + load(x, n));
}
inline float delta_of(f16 x, float) { return to_float(x); }
#endif

struct Sums {
  double gg = 0, dg = 0, dd = 0;
  int64_t bad = 0;

  Sums &operator+=(const Sums &o) {
    gg += o.gg, dg += o.dg, dd += o.dd, bad += o.bad;
    return *this;
  }
};

// What the sums of a sample decide: d <- shrink * (d + scale * g).
struct Move { float scale, shrink; };

inline float shrink_to(double eps, double length) {
  return length > eps ? static_cast<float>(eps / length) : 1.0f;
}

inline Move plan_move(const Sums &s, float step, float eps) {
  const double scale = step / (std::sqrt(s.gg) + kTiny);
  const double squared = s.dd + 2 * scale * s.dg + scale * scale * s.gg;
  return {static_cast<float>(scale), shrink_to(eps, std::sqrt(std::max(0.0, squared)))};
}

// The images of one tile. x_prev is null but for APGD. Passed by value, so that the loops keep the
// pointers in registers.
template <typename S, typename C, typename G> struct Tile {
  S *x;
  float *x_prev;
  const C *x0;
  const G *g;
  int64_t size, period;
  const float *means, *inv_stds;
  Output z;

  vf mean(int64_t j) const { return load(means + j, kLanes); }
  vf inv_std(int64_t j) const { return load(inv_stds + j, kLanes); }
  void ask_ahead(int64_t i) const {
    prefetch(x, i + kAhead), prefetch(x0, i + kAhead), prefetch(g, i + kAhead);
  }
  double gradient(int64_t i) const { return to_float(g[i]) * inv_stds[i % period]; }

  int64_t count_bad() const {
    int64_t bad = 0;
    for (int64_t i = 0; i < size; ++i) bad += !(std::fabs(gradient(i)) <= FLT_MAX);
    return bad;
  }
};

template <typename Masked, typename S, typename C, typename G>
Sums sum_tile_once(const Tile<S, C, G> t) {
  vf gg{}, dg{}, dd{};
  for_tile(t.size, t.period, [&](int64_t i, int64_t j, auto n) {
    t.ask_ahead(i);
    vf gx = load(t.g + i, n) * t.inv_std(j);
    if (Masked::value) gx = finite_or_zero(gx);
    const vf d = load_delta(t.x + i, load_pixels(t.x0 + i, n), n);
    gg += gx * gx;
    dg += d * gx;
    dd += d * d;
  });
  return {sum(gg), sum(dg), sum(dd), Masked::value ? t.count_bad() : 0};
}

// An element that is not finite makes gg not finite: then the tile is summed again without it.
template <typename S, typename C, typename G> Sums sum_tile(const Tile<S, C, G> t) {
  const Sums s = sum_tile_once<std::false_type>(t);
  return std::isfinite(s.gg) ? s : sum_tile_once<std::true_type>(t);
}

// The same sums in double, one element at a time: for gradients whose squares leave the range of
// float, which ordinary ones never do.
template <typename S, typename C, typename G> Sums sum_tile_exactly(const Tile<S, C, G> t) {
  Sums s;
  for (int64_t i = 0; i < t.size; ++i) {
    const double gx = t.gradient(i), a = std::fabs(gx) <= FLT_MAX ? gx : 0.0;
    const double d = delta_of(t.x[i], to_pixel(t.x0[i]));
    s.gg += a * a, s.dg += d * a, s.dd += d * d;
  }
  return s;
}

// The arguments of a step, cut into samples and tiles.
template <typename S, typename C, typename G> struct Batch {
  const FaStep &a;
  const Tiling t;
  const bool past_caches;  // z is written past the caches, since it would not stay there

  explicit Batch(const FaStep &args)
      : a(args), t(args.mean, args.std, args.c, args.hw, args.channels_last != 0),
        past_caches(args.n * t.row * bytes() > fa_last_level_cache()) {}

  int64_t bytes() const {
    const int64_t z = !a.z ? 0 : a.z_dtype == FA_F32 ? 4 : 2;
    return sizeof(S) + sizeof(C) + sizeof(G) + (a.x_prev ? sizeof(float) : 0) + z;
  }

  Tile<S, C, G> tile(int64_t n, int64_t k) const {
    const int64_t i = n * t.row + t.begin(k);
    const Pattern &p = t.pattern(k);
    return {static_cast<S *>(a.x) + i,
            a.x_prev ? a.x_prev + i : nullptr,
            static_cast<const C *>(a.x0) + i,
            static_cast<const G *>(a.grad) + i,
            t.size(k),
            p.period,
            p.mean.data(),
            p.inv_std.data(),
            Output(a.z, a.z_dtype, i, past_caches)};
  }

  // The sums of a sample, taken again where floats overflowed or lost digits.
  Sums checked(int64_t n, const Sums &s) const {
    if (s.gg > 1e-24 * static_cast<double>(t.row) && s.gg < 1e30) return s;
    Sums again;
    for (int64_t k = 0; k < t.tiles; ++k) again += sum_tile_exactly(tile(n, k));
    return again;
  }
};

// Threads share the samples. A pass finds its sample in cache and walks it in the other direction
// than the pass before, so that it begins with what that one touched last. On Zen 4 it was no
// better to let the later pass ask for the next sample or run in step with its sums, nor to let two
// cores share a sample so that each half fits a second-level cache.
template <typename Op> int64_t by_samples(Op &op) {
  const FaStep &a = op.batch.a;
  const Tiling &t = op.batch.t;
  int64_t bad = 0;
#pragma omp parallel num_threads(a.threads) reduction(+ : bad)
  {
    std::vector<Sums> parts(t.tiles);
#pragma omp for schedule(static)
    for (int64_t n = 0; n < a.n; ++n) {
      for (int pass = 0; pass < op.passes; ++pass) {
        for (int64_t i = 0; i < t.tiles; ++i) {
          const int64_t k = pass % 2 ? t.tiles - 1 - i : i;
          parts[k] = op.run(pass, n, k);
        }
        Sums s;
        for (const Sums &part : parts) s += part;
        bad += s.bad;
        if (pass + 1 < op.passes) op.plan(pass, n, s);
      }
    }
  }
  return bad;
}

// Threads share the tiles, for batches that would leave threads idle.
template <typename Op> int64_t by_tiles(Op &op) {
  const FaStep &a = op.batch.a;
  const Tiling &t = op.batch.t;
  int64_t bad = 0;
  std::vector<Sums> parts(a.n * t.tiles);
#pragma omp parallel num_threads(a.threads)
  for (int pass = 0; pass < op.passes; ++pass) {
#pragma omp for schedule(static)
    for (int64_t k = 0; k < a.n * t.tiles; ++k) parts[k] = op.run(pass, k / t.tiles, k % t.tiles);
#pragma omp single
    for (int64_t n = 0; n < a.n; ++n) {
      Sums s;
      for (int64_t k = 0; k < t.tiles; ++k) s += parts[n * t.tiles + k];
      bad += s.bad;
      if (pass + 1 < op.passes) op.plan(pass, n, s);
    }
  }
  return bad;
}

// Runs the passes of a step and counts its non-finite gradient elements. Op has `batch`, `passes`,
// run(pass, sample, tile) -> Sums and, called between passes, plan(pass, sample, sums).
template <typename Op> void run_passes(Op op) {
  const FaStep &a = op.batch.a;
  const bool whole = op.passes > 1 && (a.n % a.threads == 0 || a.n >= 4 * a.threads);
  const int64_t bad = whole ? by_samples(op) : by_tiles(op);
  if (a.nonfinite) *a.nonfinite += bad;
}

// Calls f with values of the C++ types of x0 and grad; false if a dtype is none that was built.
template <typename F> bool with_operands(const FaStep &a, const F &f) {
  if (a.z && !with_float(a.z_dtype, [](auto) {})) return false;
  bool known = false;
  with_clean(a.x0_dtype,
             [&](auto c) { known = with_float(a.grad_dtype, [&](auto g) { f(c, g); }); });
  return known;
}

}  // namespace
}  // namespace FA_ISA
