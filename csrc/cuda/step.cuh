// What the step kernels share: their arguments, how a block walks its tile, the choice of types.
#pragma once
#include "kernels.h"
#include "vectors.cuh"

namespace FA_ISA {

// A block of 256 threads has a tile of 8 elements a thread, loaded before the first is used: in
// float32 96 bytes in flight per thread, 96 KB on a multiprocessor that holds four blocks, where
// 4.8 TB/s at 700 ns of latency asks each of 132 for 25 KB.
constexpr int kThreads = 256, kWarps = kThreads / 32, kBlocks = 4;
constexpr int kFewBlocks = 3;  // of kernels that would spill in the 64 registers of four
constexpr uint32_t kTile = 8 * kThreads;

struct StepArgs {
  void *x;
  float *x_prev;
  const void *x0, *grad;
  void *z;
  const float *step, *eps, *mean, *std;
  unsigned long long *nonfinite;
  double *parts;
  Channels channels;
  Division tiles;  // blocks per sample
  uint32_t n, row;
  uint32_t part_width, part_count;  // of every sample; parts has [4][n][part_count]
  float momentum;
  // Rows are whole chunks, at addresses that whole loads and stores may have. Others are walked
  // one element at a time.
  bool aligned;
};

// The sample and the tile of a block.
struct Place {
  uint32_t sample, tile;

  FC_DEVICE Place(const Division &tiles, uint32_t block)
      : sample(tiles.quotient(block)), tile(block - sample * tiles.divisor) {}
};

// V elements of a thread at a time, kRounds times: loads all of them, calls ready(), uses them.
template <int V, int kRounds, typename Load, typename Ready, typename Use>
FC_DEVICE void for_rounds(uint32_t first, uint32_t row, const Load &load, const Ready &ready,
                          const Use &use) {
  decltype(load(Width<V>{}, first)) loaded[kRounds];
#pragma unroll
  for (int u = 0; u < kRounds; ++u) {
    const uint32_t at = first + u * kThreads * V;
    if (at < row) loaded[u] = load(Width<V>{}, at);
  }
  ready();
#pragma unroll
  for (int u = 0; u < kRounds; ++u) {
    const uint32_t at = first + u * kThreads * V;
    if (at < row) use(Width<V>{}, at, loaded[u]);
  }
}

// Shares a tile of a row out to the threads of the block: load(Width<V>, at) reads V elements at
// offset `at`, use(Width<V>, at, loaded) does with them what is to be done. V is 1 where rows are
// not aligned. ready() is called once, when what comes first has been asked for.
template <int V, typename Load, typename Ready, typename Use>
FC_DEVICE void for_tile(uint32_t tile, uint32_t row, bool aligned, const Load &load,
                        const Ready &ready, const Use &use) {
  const uint32_t first = tile * kTile;
  if (aligned) {
    for_rounds<V, 8 / V>(first + threadIdx.x * V, row, load, ready, use);
    return;
  }
  ready();
#pragma unroll 1
  for (uint32_t at = threadIdx.x; at < kTile; at += kThreads)
    for_rounds<1, 1>(first + at, row, load, [] {}, use);
}

// The images of sample s.
template <typename S, typename C, typename G>
FC_DEVICE Images<S, C, G> images_of(const StepArgs &a, uint32_t s) {
  const int64_t base = static_cast<int64_t>(s) * a.row;
  return {static_cast<S *>(a.x) + base, static_cast<const C *>(a.x0) + base,
          static_cast<const G *>(a.grad) + base};
}
template <typename Z> FC_DEVICE Z *output_of(const StepArgs &a, uint32_t s) {
  return a.z ? static_cast<Z *>(a.z) + static_cast<int64_t>(s) * a.row : nullptr;
}

// One of the sums of sample s that the parts hold: 0 |gx|^2, 1 <d, gx>, 2 |d|^2, 3 of APGD.
FC_DEVICE double *parts_of(const StepArgs &a, uint32_t s, int which) {
  return a.parts + (static_cast<int64_t>(which) * a.n + s) * a.part_count;
}

// Sum of a sample's parts, in all lanes of the first warp, which calls it.
FC_DEVICE double sum_parts(const double *parts, uint32_t count) {
  double sum = 0;
  for (uint32_t i = threadIdx.x; i < count; i += 32) sum += parts[i];
  return warp_sum(sum);
}

FC_DEVICE Move plan_sample(const StepArgs &a, uint32_t s) {
  const Sums sums = {sum_parts(parts_of(a, s, 0), a.part_count),
                     sum_parts(parts_of(a, s, 1), a.part_count),
                     sum_parts(parts_of(a, s, 2), a.part_count)};
  return plan_move(sums, a.step[s], a.eps[s]);
}

inline bool multiple_of(const void *p, size_t bytes) {
  return reinterpret_cast<uintptr_t>(p) % bytes == 0;
}

// The arguments of a kernel that reads or writes these types.
template <typename S, typename C, typename G, typename Z> StepArgs step_args(const FcStep &a) {
  constexpr int V = chunk_of<S, C, G, Z>();
  const FcCall &call = a.call;
  const int64_t row = call.c * call.hw;
  const Parts parts(row);
  StepArgs out{};
  out.x = a.x, out.x_prev = a.x_prev, out.x0 = a.x0, out.grad = a.grad, out.z = a.z;
  out.step = a.step, out.eps = a.eps, out.mean = a.mean, out.std = a.std;
  out.nonfinite = reinterpret_cast<unsigned long long *>(a.nonfinite);
  out.parts = a.parts;
  out.channels = Channels(call.c, call.hw, call.channels_last != 0);
  out.n = static_cast<uint32_t>(call.n), out.row = static_cast<uint32_t>(row);
  out.part_width = parts.width, out.part_count = parts.count;
  out.momentum = a.momentum;
  out.aligned = row % V == 0 && multiple_of(a.x, V * sizeof(S)) &&
                (!a.x_prev || multiple_of(a.x_prev, V * sizeof(float))) &&
                multiple_of(a.x0, V * sizeof(C)) && multiple_of(a.grad, V * sizeof(G)) &&
                (!a.z || multiple_of(a.z, V * sizeof(Z)));
  return out;
}

inline size_t table_bytes(const FcCall &call) {
  return static_cast<size_t>(call.c) * sizeof(Constants);
}

inline int64_t tiles_of(int64_t row) { return (row + kTile - 1) / kTile; }

// Launches `tiles` blocks for each sample, which must be fewer than 2^31 in all; that is 17 TB of
// float32 in whole tiles.
template <typename Args>
Error launch_tiles(void (*kernel)(Args), const FcCall &call, int64_t tiles, size_t shared,
                   Args &args) {
  args.tiles = Division(static_cast<uint32_t>(tiles));
  const Launch grid = {static_cast<uint32_t>(call.n * tiles), kThreads, 0,
                       static_cast<uint32_t>(shared), call.stream};
  return host::launch(kernel, grid, args);
}

// Call f with a value of the C++ type behind a dtype code.
template <typename F> Error with_float(int32_t dtype, const F &f) {
  switch (dtype) {
  case FC_F32: return f(float{});
  case FC_BF16: return f(bf16{});
  case FC_F16: return f(f16{});
  default: return FC_UNKNOWN_DTYPE;
  }
}
template <typename F> Error with_clean(int32_t dtype, const F &f) {
  switch (dtype) {
  case FC_F32: return f(float{});
  case FC_U8: return f(uint8_t{});
  default: return FC_UNKNOWN_DTYPE;
  }
}
template <typename F> Error with_state(int32_t dtype, const F &f) {
  switch (dtype) {
  case FC_F32: return f(float{});
  case FC_F16: return f(f16{});
  default: return FC_UNKNOWN_DTYPE;
  }
}

// The types of a step's clean images, gradient and output. No output counts as one of the
// gradient's type, which widens no chunk.
template <typename F> Error with_images(const FcStep &a, const F &f) {
  return with_clean(a.x0_dtype, [&](auto c) {
    return with_float(a.grad_dtype, [&](auto g) {
      return with_float(a.z ? a.z_dtype : a.grad_dtype, [&](auto z) { return f(c, g, z); });
    });
  });
}

// First pass of every two-pass L2 step: fills a.parts with Sums (step.cu).
Error launch_sums(const FcStep &a);
// The whole L2 step in one pass where the device and the row allow it (cluster.cu): the size of
// the cluster, or 0 if it does not run.
Error launch_cluster(const FcStep &a, int32_t *cluster, bool dry_run);

}  // namespace FA_ISA
