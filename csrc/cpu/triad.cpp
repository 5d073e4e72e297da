// The yardstick of the benchmarks, compiled once per instruction set: the memory traffic of a
// step (three reads, one or two writes, in place) with next to no arithmetic.
#include "ascent.h"

namespace FA_ISA {

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
