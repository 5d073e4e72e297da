// The step of Auto-PGD, compiled once per instruction set (FA_ISA names the namespace). Linf is
// one pass. L2 projects twice, so it takes two sums: sum; move, clip and add the momentum, which
// gives the length of the second projection; shrink. Both later passes find the sample in cache.
#include "ascent.h"

namespace FA_ISA {
namespace {

// x + momentum * (u - x) + (1 - momentum) * (x - x_prev) less x0, where u is x0 + `ahead` clipped
// to the pixels. Moves the old x to x_prev.
template <typename N>
inline vf blend(const float *x, float *x_prev, vf clean, vf ahead, float momentum, N n) {
  const vf old = load(x, n), d = old - clean, previous = load(x_prev, n) - clean;
  const vf u = to_box(clean + ahead) - clean;
  store(x_prev, old, n);
  return d + momentum * (u - d) + (1.0f - momentum) * (d - previous);
}

template <typename C, typename G>
Sums linf_tile(const Tile<float, C, G> t, float step, float eps, float momentum) {
  const vf e = splat(eps);
  vf check{};  // 0 * NaN and 0 * infinity are NaN
  for_tile(t.size, t.period, [&](int64_t i, int64_t j, auto n) {
    t.ask_ahead(i), prefetch(t.x_prev, i + kAhead);
    const vf inv = t.inv_std(j), gx = load(t.g + i, n) * inv;
    check += 0.0f * gx;
    const vf clean = load_pixels(t.x0 + i, n), d = load_delta(t.x + i, clean, n);
    const vf ahead = clamp(d + with_sign(splat(step), gx), -e, e);
    const vf w = blend(t.x + i, t.x_prev + i, clean, ahead, momentum, n);
    t.z.put(i, store_delta(t.x + i, clamp(w, -e, e), clean, n), t.mean(j), inv, n);
  });
  return {0, 0, 0, sum(check) == 0 ? 0 : t.count_bad()};
}

// Leaves x0 + w in x, not clipped, and returns |w|^2.
template <typename C, typename G>
Sums blend_tile(const Tile<float, C, G> t, Move m, float momentum) {
  vf dd{};
  for_tile(t.size, t.period, [&](int64_t i, int64_t j, auto n) {
    prefetch(t.x_prev, i + kAhead);
    const vf gx = finite_or_zero(load(t.g + i, n) * t.inv_std(j));
    const vf clean = load_pixels(t.x0 + i, n), d = load_delta(t.x + i, clean, n);
    const vf ahead = (d + m.scale * gx) * m.shrink;
    const vf w = blend(t.x + i, t.x_prev + i, clean, ahead, momentum, n);
    store(t.x + i, clean + w, n);
    dd += w * w;
  });
  return {0, 0, sum(dd), 0};
}

template <typename C, typename G> Sums shrink_tile(const Tile<float, C, G> t, float shrink) {
  for_tile(t.size, t.period, [&](int64_t i, int64_t j, auto n) {
    const vf clean = load_pixels(t.x0 + i, n), d = load_delta(t.x + i, clean, n);
    const vf v = store_delta(t.x + i, d * shrink, clean, n);
    t.z.put(i, v, t.mean(j), t.inv_std(j), n);
  });
  return {};
}

template <typename C, typename G> struct Step {
  const Batch<float, C, G> batch;
  const int passes;
  std::vector<Move> moves;

  explicit Step(const FaStep &a) : batch(a), passes(a.l2 ? 3 : 1), moves(a.n) {}

  Sums run(int pass, int64_t n, int64_t k) const {
    const FaStep &a = batch.a;
    const Tile<float, C, G> tile = batch.tile(n, k);
    if (passes == 1) return linf_tile(tile, a.step[n], a.eps[n], a.momentum);
    if (pass == 0) return sum_tile(tile);
    return pass == 1 ? blend_tile(tile, moves[n], a.momentum) : shrink_tile(tile, moves[n].shrink);
  }
  void plan(int pass, int64_t n, const Sums &s) {
    const FaStep &a = batch.a;
    if (pass == 0) moves[n] = plan_move(batch.checked(n, s), a.step[n], a.eps[n]);
    else moves[n].shrink = shrink_to(a.eps[n], std::sqrt(s.dd));
  }
};

}  // namespace

int32_t apgd_step(const FaStep &a) {
  if (a.x_dtype != FA_F32) return 1;
  const auto run = [&](auto c, auto g) { run_passes(Step<decltype(c), decltype(g)>(a)); };
  return with_operands(a, run) ? 0 : 1;
}

}  // namespace FA_ISA
