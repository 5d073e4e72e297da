// The CPU kernels, compiled once per instruction set (FA_ISA names the namespace).
//
// Loops run over vectors of kLanes floats; per-channel constants are laid out as a pattern whose
// period is a multiple of kLanes, so NCHW and channels_last share one loop. L2 makes one reduction pass for |g|^2, <d,g> and |d|^2, then
// the update: |d + s g|^2 follows from them, and the second pass reads what the first left in
// cache. Sums go tile by tile in a fixed order, so results do not depend on the thread count.
#include "step.h"

#include <algorithm>
#include <cfloat>
#include <numeric>
#include <type_traits>
#include <vector>

#include "numbers.h"
#include "vectors.h"

namespace FA_ISA {
namespace {

constexpr int64_t kTile = 6144;   // elements; 3 float streams of one tile fit a 96 KiB slice of L2
constexpr double kTiny = 1e-30;   // as TINY in kernels/reference.py

// Per-channel constants repeated to a whole number of vectors.
struct Pattern {
  int64_t period;
  std::vector<float> mean, inv_std;

  Pattern(const float *m, const float *s, int64_t channels) {
    period = std::lcm(channels, kLanes);
    for (int64_t i = 0; i < period; ++i) {
      mean.push_back(m[i % channels]);
      inv_std.push_back(1.0f / s[i % channels]);
    }
  }
};

// How the elements of one sample split into tiles that each start a fresh pattern.
struct Tiling {
  std::vector<Pattern> patterns;  // one for channels_last, one per channel for NCHW
  int64_t row, plane, tile, tiles_per_plane, tiles;

  Tiling(const float *mean, const float *std, int64_t c, int64_t hw, bool channels_last)
      : row(c * hw) {
    if (channels_last) {
      patterns.emplace_back(mean, std, c);
      plane = row;
    } else {
      for (int64_t i = 0; i < c; ++i) patterns.emplace_back(mean + i, std + i, 1);
      plane = hw;
    }
    const int64_t period = patterns[0].period;
    tile = std::max(period, kTile / period * period);
    tiles_per_plane = (plane + tile - 1) / tile;
    tiles = tiles_per_plane * static_cast<int64_t>(patterns.size());
  }
  const Pattern &pattern(int64_t t) const { return patterns[t / tiles_per_plane]; }
  int64_t begin(int64_t t) const {
    return t / tiles_per_plane * plane + t % tiles_per_plane * tile;
  }
  int64_t size(int64_t t) const {
    return std::min(tile, plane - t % tiles_per_plane * tile);
  }
};

// Calls body(i, j, n) for every vector of a tile: elements i to i + n, pattern index j. n is a
// compile-time kLanes but for the last vector, so that loads and stores stay whole.
template <typename Body>
inline void for_tile(int64_t size, int64_t period, const Body &body) {
  const std::integral_constant<int64_t, kLanes> full;
  int64_t i = 0, j = 0;
  for (; i + kLanes <= size; i += kLanes) {
    body(i, j, full);
    j += kLanes;
    j = j == period ? 0 : j;
  }
  if (i < size) body(i, j, size - i);
}

// Where z goes: a format, or nowhere.
template <typename Z> struct Output {
  Z *z;
  template <typename N>
  void put(int64_t i, vf x, vf mean, vf inv_std, N n) const {
    store(z + i, (x - mean) * inv_std, n);
  }
};
template <> struct Output<void> {
  void *z;
  template <typename N> void put(int64_t, vf, vf, vf, N) const {}
};

template <typename C, typename G, typename Z>
int64_t linf_tile(float *x, const C *x0, const G *g, Output<Z> z, int64_t size, float step,
                  float eps, const Pattern &p) {
  vi bad{};
  for_tile(size, p.period, [&](int64_t i, int64_t j, auto n) {
    const vf inv = load(p.inv_std.data() + j, kLanes), gx = load(g + i, n) * inv;
    const vf clean = load_pixels(x0 + i, n);
    const vi ok = finite(gx);
    bad += ~ok;
    vf move = gx > 0.0f ? splat(step) : splat(0.0f);
    move = gx < 0.0f ? splat(-step) : move;
    move = ok ? move : splat(0.0f);
    const vf d = clamp(load(x + i, n) + move - clean, splat(-eps), splat(eps));
    const vf v = clamp(clean + d, splat(0.0f), splat(1.0f));
    store(x + i, v, n);
    z.put(i, v, load(p.mean.data() + j, kLanes), inv, n);
  });
  return -sum(bad);
}

struct Sums {
  double gg = 0, dg = 0, dd = 0;
  int64_t bad = 0;
};

template <typename C, typename G>
Sums sum_tile(const float *x, const C *x0, const G *g, int64_t size, const Pattern &p) {
  vf gg{}, dg{}, dd{};
  vi bad{};
  for_tile(size, p.period, [&](int64_t i, int64_t j, auto n) {
    vf gx = load(g + i, n) * load(p.inv_std.data() + j, kLanes);
    const vi ok = finite(gx);
    gx = ok ? gx : splat(0.0f);
    const vf d = load(x + i, n) - load_pixels(x0 + i, n);
    bad += ~ok;
    gg += gx * gx;
    dg += d * gx;
    dd += d * d;
  });
  return {sum(gg), sum(dg), sum(dd), -sum(bad)};
}

// As sum_tile, in double and one element at a time: for gradients whose squares leave the
// range of float, which ordinary ones never do.
template <typename C, typename G>
Sums sum_tile_double(const float *x, const C *x0, const G *g, int64_t size, const Pattern &p) {
  Sums s;
  for (int64_t i = 0; i < size; ++i) {
    const float gx = to_float(g[i]) * p.inv_std[i % p.period];
    const double a = std::fabs(gx) <= FLT_MAX ? gx : 0.0f, d = x[i] - to_pixel(x0[i]);
    s.gg += a * a, s.dg += d * a, s.dd += d * d;
  }
  return s;
}

// d <- shrink * (d + scale * g): what the sums of a sample decide.
struct Move {
  float scale, shrink;
};

Move plan_move(const Sums &s, float step, float eps) {
  const double scale = step / (std::sqrt(s.gg) + kTiny);
  const double length =
      std::sqrt(std::max(0.0, s.dd + 2 * scale * s.dg + scale * scale * s.gg));
  return {static_cast<float>(scale), length > eps ? static_cast<float>(eps / length) : 1.0f};
}

// Squares of floats outside this range lose digits or overflow; such samples are summed again
// in double. Ordinary gradients never are, so the common path stays in float.
bool well_scaled(const Sums &s, int64_t row) {
  return s.gg > 1e-24 * static_cast<double>(row) && s.gg < 1e30;
}

template <typename C, typename G, typename Z>
void move_tile(float *x, const C *x0, const G *g, Output<Z> z, int64_t size, Move m,
               const Pattern &p) {
  for_tile(size, p.period, [&](int64_t i, int64_t j, auto n) {
    const vf inv = load(p.inv_std.data() + j, kLanes);
    vf gx = load(g + i, n) * inv;
    gx = finite(gx) ? gx : splat(0.0f);
    const vf clean = load_pixels(x0 + i, n);
    const vf d = ((load(x + i, n) - clean) + m.scale * gx) * m.shrink;
    const vf v = clamp(clean + d, splat(0.0f), splat(1.0f));
    store(x + i, v, n);
    z.put(i, v, load(p.mean.data() + j, kLanes), inv, n);
  });
}

template <typename C, typename G, typename Z> struct Step {
  const FaStep &a;
  Tiling t;
  const C *x0;
  const G *g;

  explicit Step(const FaStep &args)
      : a(args), t(args.mean, args.std, args.c, args.hw, args.channels_last != 0),
        x0(static_cast<const C *>(args.x0)), g(static_cast<const G *>(args.grad)) {}

  Output<Z> z(int64_t i) const {
    if constexpr (std::is_void_v<Z>) return {nullptr};
    else return {static_cast<Z *>(a.z) + i};
  }

  Sums sums(int64_t n, int64_t tile) const {
    const int64_t i = n * t.row + t.begin(tile);
    return sum_tile(a.x + i, x0 + i, g + i, t.size(tile), t.pattern(tile));
  }

  Sums sums_double(int64_t n, int64_t tile) const {
    const int64_t i = n * t.row + t.begin(tile);
    return sum_tile_double(a.x + i, x0 + i, g + i, t.size(tile), t.pattern(tile));
  }

  Sums total(int64_t n, const Sums *parts) const {
    Sums s;
    for (int64_t k = 0; k < t.tiles; ++k)
      s.gg += parts[k].gg, s.dg += parts[k].dg, s.dd += parts[k].dd, s.bad += parts[k].bad;
    if (well_scaled(s, t.row)) return s;
    const int64_t bad = s.bad;
    s = {};
    for (int64_t k = 0; k < t.tiles; ++k) {
      const Sums part = sums_double(n, k);
      s.gg += part.gg, s.dg += part.dg, s.dd += part.dd;
    }
    s.bad = bad;
    return s;
  }

  void move(int64_t n, int64_t tile, Move m) const {
    const int64_t i = n * t.row + t.begin(tile);
    move_tile(a.x + i, x0 + i, g + i, z(i), t.size(tile), m, t.pattern(tile));
  }

  int64_t linf() const {
    int64_t bad = 0;
#pragma omp parallel for schedule(static) num_threads(a.threads) reduction(+ : bad)
    for (int64_t k = 0; k < a.n * t.tiles; ++k) {
      const int64_t n = k / t.tiles, tile = k % t.tiles, i = n * t.row + t.begin(tile);
      bad += linf_tile(a.x + i, x0 + i, g + i, z(i), t.size(tile), a.step[n], a.eps[n],
                       t.pattern(tile));
    }
    return bad;
  }

  // Threads over samples: the second pass finds the sample in cache, and walks it backwards so
  // that it begins with what the first pass touched last.
  int64_t l2_samples() const {
    int64_t bad = 0;
#pragma omp parallel num_threads(a.threads) reduction(+ : bad)
    {
      std::vector<Sums> parts(t.tiles);
#pragma omp for schedule(static)
      for (int64_t n = 0; n < a.n; ++n) {
        for (int64_t k = 0; k < t.tiles; ++k) parts[k] = sums(n, k);
        const Sums s = total(n, parts.data());
        bad += s.bad;
        const Move m = plan_move(s, a.step[n], a.eps[n]);
        for (int64_t k = t.tiles; k-- > 0;) move(n, k, m);
      }
    }
    return bad;
  }

  // Threads over tiles, for batches that would leave threads idle.
  int64_t l2_tiles() const {
    int64_t bad = 0;
    std::vector<Sums> parts(a.n * t.tiles);
    std::vector<Move> moves(a.n);
#pragma omp parallel num_threads(a.threads)
    {
#pragma omp for schedule(static)
      for (int64_t k = 0; k < a.n * t.tiles; ++k)
        parts[k] = sums(k / t.tiles, k % t.tiles);
#pragma omp single
      for (int64_t n = 0; n < a.n; ++n) {
        const Sums s = total(n, parts.data() + n * t.tiles);
        bad += s.bad;
        moves[n] = plan_move(s, a.step[n], a.eps[n]);
      }
#pragma omp for schedule(static)
      for (int64_t k = 0; k < a.n * t.tiles; ++k) move(k / t.tiles, k % t.tiles, moves[k / t.tiles]);
    }
    return bad;
  }

  void run() const {
    const bool whole_samples = a.n % a.threads == 0 || a.n >= 4 * a.threads;
    const int64_t bad = !a.l2 ? linf() : whole_samples ? l2_samples() : l2_tiles();
    if (a.nonfinite) *a.nonfinite += bad;
  }
};

template <typename T> struct Type { using type = T; };

// Calls f with the C++ type behind a dtype code; false if the code is not one of T...
template <typename F> bool with_float(int32_t dtype, const F &f) {
  switch (dtype) {
  case FA_F32: f(Type<float>{}); return true;
  case FA_BF16: f(Type<bf16>{}); return true;
#if FA_HAS_F16
  case FA_F16: f(Type<f16>{}); return true;
#endif
  default: return false;
  }
}
template <typename F> bool with_clean(int32_t dtype, const F &f) {
  switch (dtype) {
  case FA_F32: f(Type<float>{}); return true;
  case FA_U8: f(Type<uint8_t>{}); return true;
  default: return false;
  }
}

// Fills out with the unscaled random direction of sample n (uniform in [-1, 1), or normal)
// and returns its squared length.
double random_row(const FaInit &a, int64_t n, float *out) {
  const uint64_t sample = a.offset + static_cast<uint64_t>(n);
  const int64_t pixel_stride = a.channels_last ? a.c : 1;
  const int64_t channel_stride = a.channels_last ? 1 : a.hw;
  double sum = 0;
  for (int64_t q = 0; q * 4 < a.c; ++q) {
    const int64_t lanes = std::min<int64_t>(4, a.c - q * 4);
    for (int64_t p = 0; p < a.hw; ++p) {
      const Words w = philox(static_cast<uint32_t>(p), static_cast<uint32_t>(q), sample, a.seed);
      float v[4];
      if (!a.l2) {
        for (int l = 0; l < 4; ++l) v[l] = 2.0f * uniform(w.v[l]) - 1.0f;
      } else {
        for (int l = 0; l < 4; l += 2) {
          const float r = std::sqrt(-2.0f * std::log(uniform(w.v[l]) + kUnit));
          const float t = 6.283185307179586f * uniform(w.v[l + 1]);
          v[l] = r * std::cos(t), v[l + 1] = r * std::sin(t);
        }
      }
      for (int64_t l = 0; l < lanes; ++l) {
        out[p * pixel_stride + (q * 4 + l) * channel_stride] = v[l];
        sum += static_cast<double>(v[l]) * v[l];
      }
    }
  }
  return sum;
}

template <typename C> void init_rows(const FaInit &a) {
  const int64_t row = a.c * a.hw;
  const C *x0 = static_cast<const C *>(a.x0);
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t n = 0; n < a.n; ++n) {
    float *out = a.out + n * row;
    const double squared = random_row(a, n, out);
    double scale = a.eps[n];
    if (a.l2) {
      const Words w = philox(0xFFFFFFFFu, 0, a.offset + static_cast<uint64_t>(n), a.seed);
      const double u = static_cast<double>(uniform(w.v[0])) + kUnit;
      scale *= std::pow(u, 1.0 / static_cast<double>(row)) / std::max(std::sqrt(squared), kTiny);
    }
    for (int64_t i = 0; i < row; ++i) {
      const double v = to_pixel(x0[n * row + i]) + scale * out[i];
      out[i] = static_cast<float>(std::min(std::max(v, 0.0), 1.0));
    }
  }
}

template <typename C, typename Z> void normalize_rows(const FaNormalize &a) {
  const Tiling t(a.mean, a.std, a.c, a.hw, a.channels_last != 0);
  const C *x = static_cast<const C *>(a.x);
  Z *z = static_cast<Z *>(a.z);
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t k = 0; k < a.n * t.tiles; ++k) {
    const int64_t begin = k / t.tiles * t.row + t.begin(k % t.tiles);
    const Pattern &p = t.pattern(k % t.tiles);
    const Output<Z> out{z + begin};
    for_tile(t.size(k % t.tiles), p.period, [&](int64_t i, int64_t j, auto n) {
      const vf v = load_pixels(x + begin + i, n);
      out.put(i, v, load(p.mean.data() + j, kLanes), load(p.inv_std.data() + j, kLanes), n);
    });
  }
}

}  // namespace

int32_t pgd_step(const FaStep &a) {
  bool known = false;
  with_clean(a.x0_dtype, [&](auto c) {
    with_float(a.grad_dtype, [&](auto g) {
      using C = typename decltype(c)::type;
      using G = typename decltype(g)::type;
      if (!a.z) {
        Step<C, G, void>(a).run();
        known = true;
      } else {
        known = with_float(a.z_dtype, [&](auto z) {
          Step<C, G, typename decltype(z)::type>(a).run();
        });
      }
    });
  });
  return known ? 0 : 1;
}

int32_t ball_init(const FaInit &a) {
  return with_clean(a.x0_dtype, [&](auto c) { init_rows<typename decltype(c)::type>(a); }) ? 0 : 1;
}

int32_t normalize(const FaNormalize &a) {
  bool known = false;
  with_clean(a.x_dtype, [&](auto c) {
    known = with_float(a.z_dtype, [&](auto z) {
      normalize_rows<typename decltype(c)::type, typename decltype(z)::type>(a);
    });
  });
  return known ? 0 : 1;
}

}  // namespace FA_ISA
