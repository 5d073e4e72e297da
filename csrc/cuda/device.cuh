// Everything of CUDA that the kernels use beyond its language: instructions without a C++ name,
// and launching. g++ gets another implementation of the same functions, from the tests, which
// runs the kernels on the CPU.
#pragma once
#include <cstdint>

#if !defined(__CUDACC__)
#include "cuda_emulator.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <mutex>
#include <vector>

#include "../cpu/numbers.h"

namespace FA_ISA {

struct f16 { uint16_t bits; };

#define FC_DEVICE __device__ __forceinline__
#define FC_GLOBAL(threads, blocks) __global__ void __launch_bounds__(threads, blocks)
#define FC_ARGS const __grid_constant__

extern __shared__ __align__(128) unsigned char fc_shared[];
FC_DEVICE unsigned char *shared_memory() { return fc_shared; }

FC_DEVICE f16 half_of(uint16_t bits) { return {bits}; }
FC_DEVICE float half_to_float(f16 v) { return __half2float(__ushort_as_half(v.bits)); }
// Two floats, rounded to nearest even, the first in the low half.
FC_DEVICE uint32_t pack_bf16(float a, float b) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  return *reinterpret_cast<const uint32_t *>(&pair);
}
FC_DEVICE uint32_t pack_f16(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t *>(&pair);
}

constexpr uint32_t kFullWarp = 0xFFFFFFFFu;

// Barriers in shared memory that count arriving bytes, and the copies they wait for (sm_90).
FC_DEVICE uint32_t shared_address(const void *p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}
FC_DEVICE void barrier_init(uint64_t *barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
// Makes the initialised barriers known to the copy engine; before the block's next barrier.
FC_DEVICE void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// What this thread has read of shared memory so far comes before the copies that any thread asks
// for after the next barrier. The copy engine is another proxy than ordinary reads, and a barrier
// of threads alone orders ordinary accesses.
FC_DEVICE void reads_before_copies() {
#ifndef FC_NO_PROXY_FENCE  // to measure what it costs
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
FC_DEVICE void barrier_expect(uint64_t *barrier, uint32_t bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
FC_DEVICE void barrier_wait(uint64_t *barrier, uint32_t parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
// Global to shared memory; addresses and size are multiples of 16 bytes.
FC_DEVICE void copy_bulk(const void *to, const void *from, uint32_t bytes, uint64_t *barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}

// Thread-block clusters (sm_90).
FC_DEVICE uint32_t cluster_rank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// Waits for every thread of the cluster; what they wrote to shared memory is then seen by all.
FC_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
// *p as block `rank` of the cluster has it in its shared memory.
FC_DEVICE double load_remote(const double *p, uint32_t rank) {
  uint32_t remote;
  double value;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
               : "=r"(remote)
               : "r"(shared_address(p)), "r"(rank));
  asm volatile("ld.shared::cluster.f64 %0, [%1];" : "=d"(value) : "r"(remote) : "memory");
  return value;
}

using Error = int32_t;

// How a kernel is launched. `cluster` blocks in a row form a cluster.
struct Launch {
  uint32_t blocks, threads, cluster, shared;
  void *stream;
};

namespace host {

struct Device { int multiprocessors = 0, shared_limit = 0, major = 0; };

inline int32_t runtime_version() {
  int version = 0;
  cudaRuntimeGetVersion(&version);
  return version;
}
inline int32_t driver_version() {
  int version = 0;
  cudaDriverGetVersion(&version);
  return version;
}
inline const char *error_name(Error e) { return cudaGetErrorName(static_cast<cudaError_t>(e)); }
inline const char *error_text(Error e) { return cudaGetErrorString(static_cast<cudaError_t>(e)); }

inline Error properties(int device, Device *found) {
  Error error =
      cudaDeviceGetAttribute(&found->multiprocessors, cudaDevAttrMultiProcessorCount, device);
  if (!error)
    error = cudaDeviceGetAttribute(&found->shared_limit, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                   device);
  if (!error)
    error = cudaDeviceGetAttribute(&found->major, cudaDevAttrComputeCapabilityMajor, device);
  return error;
}

// Makes `device` current for the life of the object.
class Current {
 public:
  explicit Current(int device) {
    error = cudaGetDevice(&before_);
    if (!error && before_ != device) error = cudaSetDevice(device);
    changed_ = !error && before_ != device;
  }
  ~Current() {
    if (changed_) cudaSetDevice(before_);
  }
  Current(const Current &) = delete;
  Current &operator=(const Current &) = delete;
  Error error;

 private:
  int before_ = 0;
  bool changed_ = false;
};

inline cudaLaunchConfig_t configure(const Launch &l, cudaLaunchAttribute *attribute) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(l.blocks);
  config.blockDim = dim3(l.threads);
  config.dynamicSmemBytes = l.shared;
  config.stream = static_cast<cudaStream_t>(l.stream);
  if (l.cluster) {
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = l.cluster;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
    config.attrs = attribute;
    config.numAttrs = 1;
  }
  return config;
}

template <typename Args> Error launch(void (*kernel)(Args), const Launch &l, const Args &args) {
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = configure(l, &attribute);
  return cudaLaunchKernelEx(&config, kernel, args);
}

// How many clusters run at one time (0: none fits), having allowed the kernel all shared memory
// that a block may have and clusters of any size. The answer is kept: asking takes longer than a
// launch.
template <typename Args>
Error clusters_at_once(void (*kernel)(Args), const Launch &l, int device, int shared_limit,
                       int *clusters) {
  struct Known {
    void (*kernel)(Args);
    uint32_t cluster, shared;
    int device, clusters;
  };
  static std::mutex mutex;
  static std::vector<Known> known;
  const std::lock_guard<std::mutex> lock(mutex);
  for (const Known &k : known)
    if (k.kernel == kernel && k.cluster == l.cluster && k.shared == l.shared &&
        k.device == device) {
      *clusters = k.clusters;
      return 0;
    }
  Error error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_limit);
  if (!error)
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  if (error) return error;
  cudaLaunchAttribute attribute;
  const cudaLaunchConfig_t config = configure(l, &attribute);
  // Fails where the device lacks what is asked for, which is an answer, not an error.
  if (cudaOccupancyMaxActiveClusters(clusters, kernel, &config)) *clusters = 0;
  cudaGetLastError();
  known.push_back({kernel, l.cluster, l.shared, device, *clusters});
  return 0;
}

}  // namespace host
}  // namespace FA_ISA
#endif
