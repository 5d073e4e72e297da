// The projected ascent step, compiled once per instruction set (FA_ISA names the namespace).
// Linf is one pass; L2 sums, then moves what the sums left in cache.
#include "ascent.h"

namespace FA_ISA {
namespace {

template <typename S, typename C, typename G>
Sums linf_tile(const Tile<S, C, G> t, float step, float eps) {
  vf check{};  // 0 * NaN and 0 * infinity are NaN
  for_tile(t.size, t.period, [&](int64_t i, int64_t j, auto n) {
    t.ask_ahead(i);
    const vf inv = t.inv_std(j), gx = load(t.g + i, n) * inv;
    check += 0.0f * gx;
    const vf clean = load_pixels(t.x0 + i, n), d = load_delta(t.x + i, clean, n);
    const vf moved = clamp(d + with_sign(splat(step), gx), splat(-eps), splat(eps));
    t.z.put(i, store_delta(t.x + i, moved, clean, n), t.mean(j), inv, n);
  });
  return {0, 0, 0, sum(check) == 0 ? 0 : t.count_bad()};
}

template <typename S, typename C, typename G> Sums move_tile(const Tile<S, C, G> t, Move m) {
  for_tile(t.size, t.period, [&](int64_t i, int64_t j, auto n) {
    const vf inv = t.inv_std(j), gx = finite_or_zero(load(t.g + i, n) * inv);
    const vf clean = load_pixels(t.x0 + i, n), d = load_delta(t.x + i, clean, n);
    const vf v = store_delta(t.x + i, (d + m.scale * gx) * m.shrink, clean, n);
    t.z.put(i, v, t.mean(j), inv, n);
  });
  return {};
}

template <typename S, typename C, typename G> struct Step {
  const Batch<S, C, G> batch;
  const int passes;
  std::vector<Move> moves;

  explicit Step(const FaStep &a) : batch(a), passes(a.l2 ? 2 : 1), moves(a.n) {}

  Sums run(int pass, int64_t n, int64_t k) const {
    const Tile<S, C, G> tile = batch.tile(n, k);
    if (passes == 1) return linf_tile(tile, batch.a.step[n], batch.a.eps[n]);
    return pass == 0 ? sum_tile(tile) : move_tile(tile, moves[n]);
  }
  void plan(int, int64_t n, const Sums &s) {
    moves[n] = plan_move(batch.checked(n, s), batch.a.step[n], batch.a.eps[n]);
  }
};

}  // namespace

int32_t pgd_step(const FaStep &a) {
  bool known = false;
  const auto with_state = [&](auto s) {
    known = with_operands(
        a, [&](auto c, auto g) { run_passes(Step<decltype(s), decltype(c), decltype(g)>(a)); });
  };
  if (a.x_dtype == FA_F32) with_state(float{});
#if FA_HAS_F16
  if (a.x_dtype == FA_F16) with_state(f16{});
#endif
  return known ? 0 : 1;
}

// The yardstick of the benchmarks: the memory traffic of a step (three reads, one or two writes,
// in place) with next to no arithmetic.
int32_t triad(const FaTriad &a) {
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t first = 0; first < a.size; first += kTile) {
    float *x = a.x + first;
    const float *p = a.a + first, *q = a.b + first;
    const Output z(a.z, FA_F32, first, a.stream != 0);
    for_tile(std::min(kTile, a.size - first), kLanes, [&](int64_t i, int64_t, auto n) {
      prefetch(x, i + kAhead), prefetch(p, i + kAhead), prefetch(q, i + kAhead);
      const vf v = load(x + i, n) + 0.5f * (load(p + i, n) - load(q + i, n));
      store(x + i, v, n);
      z.put(i, v, splat(0.0f), splat(1.0f), n);
    });
  }
  return 0;
}

}  // namespace FA_ISA
