// One step of APGD: linf in one pass. L2 projects twice, and each projection needs the length of
// what it projects: sums (step.cu), then the step with its momentum, then the second projection.
// Between the last two passes x holds the perturbation that is to be projected.
#include "step.cuh"

namespace FA_ISA {
namespace {

using Iterate = State<false>;

// What the first two kernels read of an element: a step's images and the iterate before.
template <typename C, typename G, int V> struct Trail {
  Elements<float, C, G, V> elements;
  Chunk<float, V> x_prev;
};

template <typename C, typename G> struct TrailImages {
  Images<float, C, G> images;
  float *x_prev;

  FC_DEVICE TrailImages(const StepArgs &a, uint32_t s)
      : images(images_of<float, C, G>(a, s)), x_prev(a.x_prev + static_cast<int64_t>(s) * a.row) {}
  template <int V> FC_DEVICE Trail<C, G, V> operator()(Width<V> v, uint32_t at) const {
    return {images(v, at), load<float, V>(x_prev + at)};
  }
};

template <typename C, typename G, typename Z>
FC_GLOBAL(kThreads, kFewBlocks) linf_kernel(FC_ARGS StepArgs a) {
  constexpr int V = chunk_of<float, C, G, Z>();
  Table table(reinterpret_cast<Constants *>(shared_memory()), a.mean, a.std, a.channels);
  const Place place(a.tiles, blockIdx.x);
  const TrailImages<C, G> trail(a, place.sample);
  Z *const z = output_of<Z>(a, place.sample);
  const float step = a.step[place.sample], eps = a.eps[place.sample];
  int bad = 0;
  const auto ready = [&] {
    table.fill();
    __syncthreads();
  };
  const auto use = [&](auto v, uint32_t at, const auto &loaded) {
    constexpr int kWidth = decltype(v)::value;
    Walk walk(a.channels, at);
    float before[kWidth], state[kWidth], normalised[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k, walk.next(a.channels)) {
      const Element e = loaded.elements[k];
      const Constants c = table[walk.channel];
      const float d = Iterate::perturbation(e.state, e.clean);
      const float move = signed_step(ascent(e.grad, c.inv_std, bad), step);
      const float w =
          with_momentum(d, clip(d + move, -eps, eps), e.clean, get(loaded.x_prev, k), a.momentum);
      const Settled settled = Iterate::settle(clip(w, -eps, eps), e.clean);
      before[k] = e.state;
      state[k] = settled.state;
      normalised[k] = c.normalised(settled.image);
    }
    store(trail.x_prev + at, before);
    store(trail.images.x + at, state);
    if (z) store(z + at, normalised);
  };
  for_tile<V>(place.tile, a.row, a.aligned, trail, ready, use);
  count_up(a.nonfinite, bad);
}

// Second pass of l2: x_prev <- x, x <- the perturbation to be projected, and the parts of its
// squared length.
template <typename C, typename G>
FC_GLOBAL(kThreads, kFewBlocks) advance_kernel(FC_ARGS StepArgs a) {
  constexpr int V = chunk_of<float, C, G>();
  double *const scratch = reinterpret_cast<double *>(shared_memory());
  Move *const shared_move = reinterpret_cast<Move *>(scratch + kWarps);
  Table table(reinterpret_cast<Constants *>(shared_move + 1), a.mean, a.std, a.channels);
  const Place place(a.tiles, blockIdx.x);
  const TrailImages<C, G> trail(a, place.sample);
  const uint32_t tiles = a.part_width / kTile;
  Move move = {};
  double squares = 0;
  int bad = 0;  // counted in the first pass
  const auto use = [&](auto v, uint32_t at, const auto &loaded) {
    constexpr int kWidth = decltype(v)::value;
    Walk walk(a.channels, at);
    float before[kWidth], state[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k, walk.next(a.channels)) {
      const Element e = loaded.elements[k];
      const float d = Iterate::perturbation(e.state, e.clean);
      const float gx = ascent(e.grad, table[walk.channel].inv_std, bad);
      const float w =
          with_momentum(d, move.apply(d, gx), e.clean, get(loaded.x_prev, k), a.momentum);
      squares += static_cast<double>(w) * w;
      before[k] = e.state;
      state[k] = w;
    }
    store(trail.x_prev + at, before);
    store(trail.images.x + at, state);
  };
  for (uint32_t t = 0; t < tiles; ++t) {
    const auto ready = [&] {
      if (t) return;
      if (threadIdx.x < 32) {
        const Move planned = plan_sample(a, place.sample);
        if (threadIdx.x == 0) *shared_move = planned;
      }
      table.fill();
      __syncthreads();
      move = *shared_move;
    };
    for_tile<V>(place.tile * tiles + t, a.row, a.aligned, trail, ready, use);
  }
  squares = block_sum<kWarps>(squares, scratch);
  if (threadIdx.x == 0) parts_of(a, place.sample, 3)[place.tile] = squares;
}

// Third pass of l2: projects the perturbation that x holds.
template <typename C, typename Z> FC_GLOBAL(kThreads, kBlocks) finish_kernel(FC_ARGS StepArgs a) {
  constexpr int V = chunk_of<float, C, Z>();
  Move *const shared_move = reinterpret_cast<Move *>(shared_memory());
  Table table(reinterpret_cast<Constants *>(shared_move + 1), a.mean, a.std, a.channels);
  const Place place(a.tiles, gridDim.x - 1 - blockIdx.x);
  const auto images = images_of<float, C, float>(a, place.sample);
  const Pairs<C> pairs = {images.x, images.x0};
  Z *const z = output_of<Z>(a, place.sample);
  Move move = {};
  const auto ready = [&] {
    if (threadIdx.x < 32) {
      const double squares = sum_parts(parts_of(a, place.sample, 3), a.part_count);
      const Move planned = plan_move({0, 0, squares}, 0.0f, a.eps[place.sample]);
      if (threadIdx.x == 0) *shared_move = planned;
    }
    table.fill();
    __syncthreads();
    move = *shared_move;
  };
  const auto use = [&](auto v, uint32_t at, const auto &loaded) {
    constexpr int kWidth = decltype(v)::value;
    Walk walk(a.channels, at);
    float state[kWidth], normalised[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k, walk.next(a.channels)) {
      const Settled settled =
          Iterate::settle(move.apply(get(loaded.state, k), 0.0f), get(loaded.clean, k));
      state[k] = settled.state;
      normalised[k] = table[walk.channel].normalised(settled.image);
    }
    store(images.x + at, state);
    if (z) store(z + at, normalised);
  };
  for_tile<V>(place.tile, a.row, a.aligned, pairs, ready, use);
}

Error launch_linf(const FcStep &a) {
  return with_images(a, [&](auto clean, auto grad, auto out) {
    using C = decltype(clean);
    using G = decltype(grad);
    using Z = decltype(out);
    StepArgs args = step_args<float, C, G, Z>(a);
    return launch_tiles(linf_kernel<C, G, Z>, a.call, tiles_of(args.row), table_bytes(a.call),
                        args);
  });
}

Error launch_advance(const FcStep &a) {
  return with_clean(a.x0_dtype, [&](auto clean) {
    return with_float(a.grad_dtype, [&](auto grad) {
      using C = decltype(clean);
      using G = decltype(grad);
      StepArgs args = step_args<float, C, G, G>(a);
      const size_t shared = kWarps * sizeof(double) + sizeof(Move) + table_bytes(a.call);
      return launch_tiles(advance_kernel<C, G>, a.call, args.part_count, shared, args);
    });
  });
}

Error launch_finish(const FcStep &a) {
  return with_clean(a.x0_dtype, [&](auto clean) {
    return with_float(a.z ? a.z_dtype : FC_F32, [&](auto out) {
      using C = decltype(clean);
      using Z = decltype(out);
      StepArgs args = step_args<float, C, float, Z>(a);
      return launch_tiles(finish_kernel<C, Z>, a.call, tiles_of(args.row),
                          sizeof(Move) + table_bytes(a.call), args);
    });
  });
}

}  // namespace
}  // namespace FA_ISA

using namespace FA_ISA;

int32_t fc_apgd_step(const FcStep *a) {
  const host::Current current(a->call.device);
  if (current.error) return current.error;
  if (a->x_dtype != FC_F32) return FC_UNKNOWN_DTYPE;
  if (!a->l2) return launch_linf(*a);
  Error error = launch_sums(*a);
  if (!error) error = launch_advance(*a);
  return error ? error : launch_finish(*a);
}
