// One projected ascent step: linf in one pass, l2 in two (sums, then the move). Where a sample
// fits into the shared memory of a cluster, cluster.cu does l2 in one.
#include <type_traits>

#include "step.cuh"

namespace FA_ISA {
namespace {

template <bool kL2, typename S, typename C, typename G, typename Z>
FC_GLOBAL(kThreads, kL2 ? kFewBlocks : kBlocks) step_kernel(FC_ARGS StepArgs a) {
  constexpr int V = chunk_of<S, C, G, Z>();
  using Kind = State<sizeof(S) == 2>;
  Move *const shared_move = reinterpret_cast<Move *>(shared_memory());
  Table table(reinterpret_cast<Constants *>(shared_move + 1), a.mean, a.std, a.channels);
  // The second pass of l2 begins with what the first read last: that is in cache.
  const Place place(a.tiles, kL2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x);
  const uint32_t s = place.sample;
  const auto images = images_of<S, C, G>(a, s);
  Z *const z = output_of<Z>(a, s);
  const float step = a.step[s], eps = a.eps[s];
  Move move = {};
  int bad = 0;
  const auto prepare = [&] {
    if (kL2 && threadIdx.x < 32) {
      const Move planned = plan_sample(a, s);
      if (threadIdx.x == 0) *shared_move = planned;
    }
    table.fill();
    __syncthreads();
    if (kL2) move = *shared_move;
  };
  const auto use = [&](auto v, uint32_t at, const auto &elements) {
    constexpr int kWidth = decltype(v)::value;
    Walk walk(a.channels, at);
    float state[kWidth], normalised[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k, walk.next(a.channels)) {
      const Element e = elements[k];
      const Constants c = table[walk.channel];
      const float gx = ascent(e.grad, c.inv_std, bad);
      const float d = Kind::perturbation(e.state, e.clean);
      const float ahead = kL2 ? move.apply(d, gx) : clip(d + signed_step(gx, step), -eps, eps);
      const Settled settled = Kind::settle(ahead, e.clean);
      state[k] = settled.state;
      normalised[k] = c.normalised(settled.image);
    }
    store(images.x + at, state);
    if (z) store(z + at, normalised);
  };
  for_tile<V>(place.tile, a.row, a.aligned, images, prepare, use);
  if (!kL2) count_up(a.nonfinite, bad);
}

template <typename S, typename C, typename G>
FC_GLOBAL(kThreads, kBlocks) sums_kernel(FC_ARGS StepArgs a) {
  constexpr int V = chunk_of<S, C, G>();
  using Kind = State<sizeof(S) == 2>;
  double *const scratch = reinterpret_cast<double *>(shared_memory());
  Table table(reinterpret_cast<Constants *>(scratch + 3 * kWarps), a.mean, a.std, a.channels);
  const Place place(a.tiles, blockIdx.x);
  const uint32_t s = place.sample, tiles = a.part_width / kTile;
  const auto images = images_of<S, C, G>(a, s);
  Sums sums;
  int bad = 0;
  const auto use = [&](auto v, uint32_t at, const auto &elements) {
    Walk walk(a.channels, at);
#pragma unroll
    for (int k = 0; k < decltype(v)::value; ++k, walk.next(a.channels)) {
      const Element e = elements[k];
      const float gx = ascent(e.grad, table[walk.channel].inv_std, bad);
      sums.add(gx, Kind::perturbation(e.state, e.clean));
    }
  };
  for (uint32_t t = 0; t < tiles; ++t) {
    const auto prepare = [&] {
      if (t) return;
      table.fill();
      __syncthreads();
    };
    for_tile<V>(place.tile * tiles + t, a.row, a.aligned, images, prepare, use);
  }
  sums = block_sum<kWarps>(sums, scratch);
  if (threadIdx.x == 0) {
    parts_of(a, s, 0)[place.tile] = sums.gg;
    parts_of(a, s, 1)[place.tile] = sums.dg;
    parts_of(a, s, 2)[place.tile] = sums.dd;
  }
  count_up(a.nonfinite, bad);
}

static_assert(kPartWidth % kTile == 0);

template <bool kL2> Error launch_step(const FcStep &a) {
  return with_state(a.x_dtype, [&](auto state) {
    return with_images(a, [&](auto clean, auto grad, auto out) {
      using S = decltype(state);
      using C = decltype(clean);
      using G = decltype(grad);
      using Z = decltype(out);
      StepArgs args = step_args<S, C, G, Z>(a);
      return launch_tiles(step_kernel<kL2, S, C, G, Z>, a.call, tiles_of(args.row),
                          sizeof(Move) + table_bytes(a.call), args);
    });
  });
}

}  // namespace

Error launch_sums(const FcStep &a) {
  return with_state(a.x_dtype, [&](auto state) {
    return with_clean(a.x0_dtype, [&](auto clean) {
      return with_float(a.grad_dtype, [&](auto grad) {
        using S = decltype(state);
        // A perturbation is the state itself: the clean images are not read then, and must
        // not narrow the chunks.
        using C = std::conditional_t<sizeof(S) == 2, uint8_t, decltype(clean)>;
        using G = decltype(grad);
        StepArgs args = step_args<S, C, G, G>(a);
        return launch_tiles(sums_kernel<S, C, G>, a.call, args.part_count,
                            3 * kWarps * sizeof(double) + table_bytes(a.call), args);
      });
    });
  });
}

}  // namespace FA_ISA

using namespace FA_ISA;

int32_t fc_pgd_step(const FcStep *a) {
  const host::Current current(a->call.device);
  if (current.error) return current.error;
  if (!a->l2) return launch_step<false>(*a);
  int32_t cluster = 0;
  if (a->single_pass) {
    const Error error = launch_cluster(*a, &cluster, false);
    if (error || cluster) return error;
  }
  const Error error = launch_sums(*a);
  return error ? error : launch_step<true>(*a);
}

int32_t fc_uses_cluster(const FcStep *a) {
  const host::Current current(a->call.device);
  int32_t cluster = 0;
  if (current.error || !a->l2 || !a->single_pass || launch_cluster(*a, &cluster, true)) return 0;
  return cluster;
}

int64_t fc_parts(int64_t n, int64_t row) { return 4 * n * Parts(row).count; }
