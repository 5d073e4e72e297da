// The L2 step in a single pass, for compute capability 9.0 and newer: a cluster of thread blocks
// holds one sample (iterate, clean image, gradient) in its shared memory, adds up what decides
// the step there, and moves. Every byte of the sample crosses the memory bus once.
//
// The grid has all clusters that run at one time. Each cluster takes every k-th sample; its share
// is cut into stages, each with a barrier that counts the arriving bytes. Sums are taken while
// later stages are still arriving, and while a sample is being moved, each stage that has been read
// is filled with the next sample.
#include <type_traits>

#include "step.cuh"

namespace FA_ISA {
namespace {

constexpr int kClusterThreads = 512, kClusterWarps = kClusterThreads / 32;
constexpr uint32_t kMaxCluster = 16;  // more than 8 is not portable; the device is asked
constexpr uint32_t kMaxStages = 24;
constexpr uint32_t kGrain = 16;  // elements; what the copy engine moves in any type: 16 bytes
// Shares that leave room for two blocks on a multiprocessor (228 KB), so that one of them loads
// while the other computes.
constexpr int64_t kHalf = 112 * 1024;

struct ClusterArgs {
  StepArgs step;
  uint32_t share;  // elements of a sample that one block holds, a multiple of kGrain
  uint32_t cluster;
};

// At the start of shared memory; the three images and the table of constants follow.
struct alignas(128) Control {
  uint64_t barriers[kMaxStages];
  double scratch[3 * kClusterWarps];
  double totals[2][3];  // this block's sums, of an even and of an odd sample
  Move move;
};

// Where a block keeps its share of a sample.
template <typename S, typename C, typename G> struct Share {
  Control *control;
  Images<S, C, G> images;
  Constants *table;

  FC_DEVICE explicit Share(uint32_t elements) {
    unsigned char *at = shared_memory();
    control = reinterpret_cast<Control *>(at);
    at += sizeof(Control);
    images.x = reinterpret_cast<S *>(at);
    at += elements * sizeof(S);
    images.x0 = reinterpret_cast<C *>(at);
    at += elements * sizeof(C);
    images.grad = reinterpret_cast<G *>(at);
    at += elements * sizeof(G);
    table = reinterpret_cast<Constants *>(at);
  }
  static size_t bytes(int64_t elements, int64_t channels) {
    return sizeof(Control) + elements * (sizeof(S) + sizeof(C) + sizeof(G)) +
           channels * sizeof(Constants);
  }
};

template <typename S, typename C, typename G, typename Z>
FC_GLOBAL(kClusterThreads, 1) cluster_kernel(FC_ARGS ClusterArgs args) {
  constexpr int V = chunk_of<S, C, G, Z>();
  constexpr uint32_t kStage = kClusterThreads * V;
  using Kind = State<sizeof(S) == 2>;
  const StepArgs &a = args.step;
  const Share<S, C, G> share(args.share);
  Control &control = *share.control;
  const uint32_t rank = cluster_rank(), clusters = gridDim.x / args.cluster;
  const uint32_t begin = rank * args.share;
  const uint32_t held = begin < a.row ? min(args.share, a.row - begin) : 0;
  const uint32_t stages = (held + kStage - 1) / kStage;

  // One thread asks for stage k of sample s.
  const auto fetch = [&](uint32_t s, uint32_t k) {
    const uint32_t at = k * kStage, count = min(kStage, held - at);
    const int64_t from = static_cast<int64_t>(s) * a.row + begin + at;
    uint64_t *const barrier = control.barriers + k;
    barrier_expect(barrier, count * static_cast<uint32_t>(sizeof(S) + sizeof(C) + sizeof(G)));
    const auto copy = [&](const auto *to, const void *image) {
      using T = std::decay_t<decltype(*to)>;
      copy_bulk(to + at, static_cast<const T *>(image) + from, count * sizeof(T), barrier);
    };
    copy(share.images.x, a.x);
    copy(share.images.x0, a.x0);
    copy(share.images.grad, a.grad);
  };

  const uint32_t first = blockIdx.x / args.cluster;
  if (threadIdx.x == 0) {
    for (uint32_t k = 0; k < stages; ++k) barrier_init(control.barriers + k);
    barrier_init_done();
    for (uint32_t k = 0; k < stages; ++k) fetch(first, k);
  }
  Table table(share.table, a.mean, a.std, a.channels);
  table.fill();
  __syncthreads();

  uint32_t round = 0;
  for (uint32_t s = first; s < a.n; s += clusters, ++round) {
    const uint32_t odd = round & 1;
    Sums sums;
    int bad = 0;
    for (uint32_t k = 0; k < stages; ++k) {
      barrier_wait(control.barriers + k, odd);
      const uint32_t at = k * kStage + threadIdx.x * V;
      if (at >= held) continue;
      const Elements<S, C, G, V> elements = share.images.template shared_chunk<V>(at);
      Walk walk(a.channels, begin + at);
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const Element e = elements[i];
        const float gx = ascent(e.grad, table[walk.channel].inv_std, bad);
        sums.add(gx, Kind::perturbation(e.state, e.clean));
        walk.next(a.channels);
      }
    }
    sums = block_sum<kClusterWarps>(sums, control.scratch);
    double *const totals = control.totals[odd];
    if (threadIdx.x == 0) totals[0] = sums.gg, totals[1] = sums.dg, totals[2] = sums.dd;
    count_up(a.nonfinite, bad);
    // Blocks write the totals of sample k + 2 after this barrier of sample k + 1, which nobody
    // reaches before having read those of sample k.
    sync_cluster();
    if (threadIdx.x < 32) {
      const uint32_t lane = threadIdx.x;
      Sums all;
      if (lane < args.cluster)
        all = {load_remote(totals, lane), load_remote(totals + 1, lane),
               load_remote(totals + 2, lane)};
      all = {warp_sum(all.gg), warp_sum(all.dg), warp_sum(all.dd)};
      if (lane == 0) control.move = plan_move(all, a.step[s], a.eps[s]);
    }
    __syncthreads();
    const Move move = control.move;

    S *const x = images_of<S, C, G>(a, s).x + begin;
    Z *const z = a.z ? output_of<Z>(a, s) + begin : nullptr;
    for (uint32_t k = 0; k < stages; ++k) {
      const uint32_t at = k * kStage + threadIdx.x * V;
      Elements<S, C, G, V> elements;
      if (at < held) elements = share.images.template shared_chunk<V>(at);
      reads_before_copies();
      __syncthreads();  // the stage has been read
      if (threadIdx.x == 0 && s + clusters < a.n) fetch(s + clusters, k);
      if (at >= held) continue;
      Walk walk(a.channels, begin + at);
      float state[V], normalised[V];
#pragma unroll
      for (int i = 0; i < V; ++i) {
        const Element e = elements[i];
        const Constants c = table[walk.channel];
        const float gx = ascent(e.grad, c.inv_std, bad);
        const float d = Kind::perturbation(e.state, e.clean);
        const Settled settled = Kind::settle(move.apply(d, gx), e.clean);
        state[i] = settled.state;
        normalised[i] = c.normalised(settled.image);
        walk.next(a.channels);
      }
      store(x + at, state);
      if (z) store(z + at, normalised);
    }
  }
  sync_cluster();  // a block's totals may be read as long as another works
}

// The smallest cluster, of at least `least` blocks, whose blocks leave room for a second one, else
// the smallest that fits; 0 if none does.
template <typename S, typename C, typename G>
uint32_t choose_cluster(int64_t row, int64_t channels, int64_t limit, uint32_t stage,
                        uint32_t least) {
  uint32_t fits = 0;
  for (uint32_t cluster = 1; cluster <= kMaxCluster; cluster *= 2) {
    if (cluster < least) continue;
    const int64_t share = (row / kGrain + cluster - 1) / cluster * kGrain;
    const int64_t bytes = Share<S, C, G>::bytes(share, channels);
    if (bytes > limit || share > int64_t{kMaxStages} * stage) continue;
    if (!fits) fits = cluster;
    if (bytes <= kHalf && cluster <= 8) return cluster;
  }
  return fits;
}

}  // namespace

Error launch_cluster(const FcStep &a, int32_t *cluster, bool dry_run) {
  *cluster = 0;
  const int64_t row = a.call.c * a.call.hw;
  host::Device device;
  const Error error = host::properties(a.call.device, &device);
  if (error) return error;
  if (device.major < 9 || row % kGrain) return 0;
  for (const void *p :
       {static_cast<const void *>(a.x), a.x0, a.grad, static_cast<const void *>(a.z)})
    if (!multiple_of(p, 16)) return 0;
  return with_state(a.x_dtype, [&](auto state) {
    return with_images(a, [&](auto clean, auto grad, auto out) {
      using S = decltype(state);
      using C = decltype(clean);
      using G = decltype(grad);
      using Z = decltype(out);
      constexpr uint32_t stage = kClusterThreads * chunk_of<S, C, G, Z>();
      const uint32_t size = choose_cluster<S, C, G>(row, a.call.c, device.shared_limit, stage,
                                                    static_cast<uint32_t>(a.single_pass));
      if (!size) return Error{0};
      ClusterArgs args{step_args<S, C, G, Z>(a), 0, size};
      args.share = static_cast<uint32_t>((row / kGrain + size - 1) / size * kGrain);
      const size_t shared = Share<S, C, G>::bytes(args.share, a.call.c);
      Launch grid{size, kClusterThreads, size, static_cast<uint32_t>(shared), a.call.stream};
      int clusters = 0;
      const auto kernel = cluster_kernel<S, C, G, Z>;
      const Error failed =
          host::clusters_at_once(kernel, grid, a.call.device, device.shared_limit, &clusters);
      if (failed || !clusters) return failed;
      *cluster = static_cast<int32_t>(size);
      if (dry_run) return Error{0};
      grid.blocks = size * static_cast<uint32_t>(a.call.n < clusters ? a.call.n : clusters);
      return host::launch(kernel, grid, args);
    });
  });
}

}  // namespace FA_ISA
