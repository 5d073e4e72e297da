// Chooses the instruction set once, at the first call. FASTADV_CPU_ISA forces one that the
// machine has, FASTADV_CPU_LLC a size of the last-level cache, for tests and benchmarks.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "interface.h"

// Every operator with the structure of its arguments.
#define FA_OPERATORS(X)              \
  X(pgd_step, FaStep)                \
  X(apgd_step, FaStep)               \
  X(ball_init, FaInit)               \
  X(normalize, FaNormalize)          \
  X(triad, FaTriad)                  \
  X(conv3x3, FaConv3x3)              \
  X(conv3x3_weight, FaConv3x3Weight) \
  X(crops, FaCrops)

struct Kernels {
  const char *isa;
#define FA_POINTER(name, Args) int32_t (*name)(const Args &);
  FA_OPERATORS(FA_POINTER)
};

// The kernels of one instruction set, from the files that were compiled for it.
#define FA_DECLARE(name, Args) int32_t name(const Args &);
#define FA_NAME(name, Args) , name
#define FA_KERNELS(isa)                                               \
  namespace fa_##isa {                                                \
    FA_OPERATORS(FA_DECLARE)                                          \
    static Kernels kernels() { return {#isa FA_OPERATORS(FA_NAME)}; } \
  }
FA_KERNELS(baseline)
#if FA_X86
FA_KERNELS(avx2)
FA_KERNELS(avx512)
#endif

namespace {

Kernels choose() {
#if FA_X86
  const char *forced = std::getenv("FASTADV_CPU_ISA");
  const auto wanted = [&](const char *name) { return !forced || !std::strcmp(forced, name); };
  if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return fa_avx512::kernels();
  if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return fa_avx2::kernels();
#endif
  return fa_baseline::kernels();
}

const Kernels &kernels() {
  static const Kernels chosen = choose();
  return chosen;
}

// What the cores that share a last-level cache have. Linux says it per cache; sysconf adds up a
// package in some C libraries (320 MiB on a Zen 4 machine whose cores see 32), so it comes second.
int64_t detect_last_level_cache() {
  if (const char *forced = std::getenv("FASTADV_CPU_LLC")) return std::atoll(forced);
  int64_t bytes = 0;
  for (int index = 0; index < 8; ++index) {
    char path[64];
    std::snprintf(path, sizeof path, "/sys/devices/system/cpu/cpu0/cache/index%d/size", index);
    std::FILE *file = std::fopen(path, "r");
    if (!file) break;
    long long kib = 0;
    if (std::fscanf(file, "%lldK", &kib) == 1) bytes = std::max<int64_t>(bytes, kib << 10);
    std::fclose(file);
  }
#if defined(_SC_LEVEL3_CACHE_SIZE)
  if (bytes <= 0) bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
  return bytes > 0 ? bytes : int64_t{32} << 20;
}

}  // namespace

extern "C" {
const int64_t *fa_abi() {
  static const int64_t abi[] = {1,
                                sizeof(FaStep),
                                sizeof(FaInit),
                                sizeof(FaNormalize),
                                sizeof(FaTriad),
                                sizeof(FaConv3x3),
                                sizeof(FaConv3x3Weight),
                                sizeof(FaCrops),
                                0};
  return abi;
}
#define FA_EXPORT(name, Args) \
  int32_t fa_##name(const Args *args) { return kernels().name(*args); }
FA_OPERATORS(FA_EXPORT)
int64_t fa_last_level_cache() {
  static const int64_t bytes = detect_last_level_cache();
  return bytes;
}
int32_t fa_has_f16() {
#if defined(__FLT16_MAX__)
  return 1;
#else
  return 0;
#endif
}
const char *fa_isa() { return kernels().isa; }
}
