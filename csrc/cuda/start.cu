// The random start, the first normalisation, and what the library reports about itself.
#include "step.cuh"

namespace FA_ISA {
namespace {

constexpr uint32_t kSamplePixel = 0xFFFFFFFFu;  // as SAMPLE_PIXEL in kernels/philox.py

struct InitArgs {
  float *out;
  const void *x0;
  const float *eps;
  double *parts;  // l2: [n][part_count] sums of squares
  uint64_t seed, offset;
  Division tiles;
  uint32_t c, hw, part_width, part_count, row;
  bool channels_last, l2, aligned;
};

// Four numbers from four words: uniform in [-1, 1), or normal by Box and Muller.
FC_DEVICE void draw(const Words &w, bool l2, float (&v)[4]) {
#pragma unroll
  for (int k = 0; k < 4; k += 2) {
    if (!l2) {
      v[k] = 2.0f * uniform(w.v[k]) - 1.0f, v[k + 1] = 2.0f * uniform(w.v[k + 1]) - 1.0f;
      continue;
    }
    const float radius = sqrtf(-2.0f * logf(uniform(w.v[k]) + kUnit));
    float sine, cosine;
    sincospif(2.0f * uniform(w.v[k + 1]), &sine, &cosine);
    v[k] = radius * cosine, v[k + 1] = radius * sine;
  }
}

// One call of Philox per pixel and four channels. Writes the linf start, or for l2 normal numbers
// and the sum of their squares.
template <typename C> FC_GLOBAL(kThreads, kBlocks) draw_kernel(FC_ARGS InitArgs a) {
  double *const scratch = reinterpret_cast<double *>(shared_memory());
  const Place place(a.tiles, blockIdx.x);
  const int64_t base = static_cast<int64_t>(place.sample) * a.row;
  float *const out = a.out + base;
  const C *const x0 = static_cast<const C *>(a.x0) + base;
  const uint64_t sample = a.offset + place.sample;
  const float eps = a.eps[place.sample];
  const uint32_t first = place.tile * a.part_width, left = a.hw - first;
  const uint32_t pixels = left < a.part_width ? left : a.part_width;
  double squares = 0;
  for (uint32_t i = threadIdx.x; i < pixels; i += kThreads) {
    const uint32_t pixel = first + i;
    for (uint32_t channel = 0; channel < a.c; channel += 4) {
      float v[4];
      draw(philox(pixel, channel / 4, sample, a.seed), a.l2, v);
#pragma unroll
      for (uint32_t k = 0; k < 4; ++k) {
        if (channel + k >= a.c) break;
        const uint32_t at =
            a.channels_last ? pixel * a.c + channel + k : (channel + k) * a.hw + pixel;
        if (a.l2) {
          out[at] = v[k];
          squares += static_cast<double>(v[k]) * v[k];
        } else {
          const float clean = get(load_constant<C, 1>(x0 + at), 0);
          out[at] = clip(fmaf(eps, v[k], clean), 0.0f, 1.0f);
        }
      }
    }
  }
  if (!a.l2) return;
  squares = block_sum<kWarps>(squares, scratch);
  if (threadIdx.x == 0)
    a.parts[static_cast<int64_t>(place.sample) * a.part_count + place.tile] = squares;
}

// Turns a sample of normal numbers into a uniform point of its l2 ball.
template <typename C> FC_GLOBAL(kThreads, kBlocks) scale_kernel(FC_ARGS InitArgs a) {
  constexpr int V = chunk_of<float, C>();
  float *const shared_scale = reinterpret_cast<float *>(shared_memory());
  const Place place(a.tiles, gridDim.x - 1 - blockIdx.x);
  const int64_t base = static_cast<int64_t>(place.sample) * a.row;
  const Pairs<C> pairs = {a.out + base, static_cast<const C *>(a.x0) + base};
  float scale = 0;
  const auto ready = [&] {
    if (threadIdx.x < 32) {
      const double squares =
          sum_parts(a.parts + static_cast<int64_t>(place.sample) * a.part_count, a.part_count);
      const Words w = philox(kSamplePixel, 0, a.offset + place.sample, a.seed);
      // u^(1/d) makes the point uniform in the ball rather than on its surface.
      const double share = exp(log(static_cast<double>(uniform(w.v[0])) + kUnit) / a.row);
      const double length = sqrt(squares);
      const double planned = a.eps[place.sample] * share / (length > kTiny ? length : kTiny);
      if (threadIdx.x == 0) *shared_scale = static_cast<float>(planned);
    }
    __syncthreads();
    scale = *shared_scale;
  };
  const auto use = [&](auto v, uint32_t at, const auto &loaded) {
    constexpr int kWidth = decltype(v)::value;
    float image[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k)
      image[k] = clip(fmaf(scale, get(loaded.state, k), get(loaded.clean, k)), 0.0f, 1.0f);
    store(pairs.x + at, image);
  };
  for_tile<V>(place.tile, a.row, a.aligned, pairs, ready, use);
}

struct NormalizeArgs {
  void *z;
  const void *x;
  const float *mean, *std;
  Channels channels;
  Division tiles;
  uint32_t row;
  bool aligned;
};

template <typename C, typename Z>
FC_GLOBAL(kThreads, kBlocks) normalize_kernel(FC_ARGS NormalizeArgs a) {
  constexpr int V = chunk_of<C, Z>();
  Table table(reinterpret_cast<Constants *>(shared_memory()), a.mean, a.std, a.channels);
  const Place place(a.tiles, blockIdx.x);
  const int64_t base = static_cast<int64_t>(place.sample) * a.row;
  const C *const x = static_cast<const C *>(a.x) + base;
  Z *const z = static_cast<Z *>(a.z) + base;
  const auto load = [&](auto v, uint32_t at) {
    return load_constant<C, decltype(v)::value>(x + at);
  };
  const auto ready = [&] {
    table.fill();
    __syncthreads();
  };
  const auto use = [&](auto v, uint32_t at, const auto &loaded) {
    constexpr int kWidth = decltype(v)::value;
    Walk walk(a.channels, at);
    float normalised[kWidth];
#pragma unroll
    for (int k = 0; k < kWidth; ++k, walk.next(a.channels))
      normalised[k] = table[walk.channel].normalised(get(loaded, k));
    store(z + at, normalised);
  };
  for_tile<V>(place.tile, a.row, a.aligned, load, ready, use);
}

}  // namespace
}  // namespace FA_ISA

using namespace FA_ISA;

int32_t fc_ball_init(const FcInit *a) {
  const FcCall &call = a->call;
  const host::Current current(call.device);
  if (current.error) return current.error;
  return with_clean(a->x0_dtype, [&](auto clean) {
    using C = decltype(clean);
    constexpr int V = chunk_of<float, C>();
    const Parts parts(call.hw);
    InitArgs args{};
    args.out = a->out, args.x0 = a->x0, args.eps = a->eps, args.parts = a->parts;
    args.seed = a->seed, args.offset = a->offset;
    args.c = static_cast<uint32_t>(call.c), args.hw = static_cast<uint32_t>(call.hw);
    args.row = args.c * args.hw;
    args.part_width = parts.width, args.part_count = parts.count;
    args.channels_last = call.channels_last, args.l2 = a->l2;
    args.aligned = args.row % V == 0 && multiple_of(a->out, V * sizeof(float)) &&
                   multiple_of(a->x0, V * sizeof(C));
    const size_t shared = kWarps * sizeof(double);
    const Error error = launch_tiles(draw_kernel<C>, call, args.part_count, shared, args);
    if (error || !a->l2) return error;
    return launch_tiles(scale_kernel<C>, call, tiles_of(args.row), shared, args);
  });
}

int32_t fc_normalize(const FcNormalize *a) {
  const FcCall &call = a->call;
  const host::Current current(call.device);
  if (current.error) return current.error;
  return with_clean(a->x_dtype, [&](auto clean) {
    return with_float(a->z_dtype, [&](auto out) {
      using C = decltype(clean);
      using Z = decltype(out);
      constexpr int V = chunk_of<C, Z>();
      NormalizeArgs args{};
      args.z = a->z, args.x = a->x, args.mean = a->mean, args.std = a->std;
      args.channels = Channels(call.c, call.hw, call.channels_last != 0);
      args.row = static_cast<uint32_t>(call.c * call.hw);
      args.aligned =
          args.row % V == 0 && multiple_of(a->z, V * sizeof(Z)) && multiple_of(a->x, V * sizeof(C));
      return launch_tiles(normalize_kernel<C, Z>, call, tiles_of(args.row), table_bytes(call),
                          args);
    });
  });
}

const int64_t *fc_abi() {
  static const int64_t abi[] = {1, sizeof(FcStep), sizeof(FcInit), sizeof(FcNormalize), 0};
  return abi;
}
// So many channels have a table of constants that fits into every kernel's shared memory.
int64_t fc_max_channels() { return 4096; }
const char *fc_architectures() { return FC_ARCHITECTURES; }
int32_t fc_runtime_version() { return host::runtime_version(); }
int32_t fc_driver_version() { return host::driver_version(); }
const char *fc_error_name(int32_t error) { return host::error_name(error); }
const char *fc_error_text(int32_t error) { return host::error_text(error); }
