// Chooses the instruction set once, at the first call. FASTADV_CPU_ISA forces one that the
// machine has, FASTADV_CPU_LLC a size of the last-level cache, for tests and benchmarks.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "conv.h"
#include "crops.h"
#include "step.h"

#define FA_DECLARE(isa)                            \
  namespace isa {                                  \
  int32_t pgd_step(const FaStep &);                \
  int32_t apgd_step(const FaStep &);               \
  int32_t ball_init(const FaInit &);               \
  int32_t normalize(const FaNormalize &);          \
  int32_t triad(const FaTriad &);                  \
  int32_t conv3x3(const FaConv3x3 &);              \
  int32_t conv3x3_weight(const FaConv3x3Weight &); \
  int32_t crops(const FaCrops &);                  \
  }
FA_DECLARE(fa_baseline)
#if FA_X86
FA_DECLARE(fa_avx2)
FA_DECLARE(fa_avx512)
#endif

namespace {

struct Kernels {
  const char *name;
  int32_t (*pgd_step)(const FaStep &);
  int32_t (*apgd_step)(const FaStep &);
  int32_t (*ball_init)(const FaInit &);
  int32_t (*normalize)(const FaNormalize &);
  int32_t (*triad)(const FaTriad &);
  int32_t (*conv3x3)(const FaConv3x3 &);
  int32_t (*conv3x3_weight)(const FaConv3x3Weight &);
  int32_t (*crops)(const FaCrops &);
};

#define FA_ENTRY(label, isa)                                                       \
  {label,      isa::pgd_step, isa::apgd_step,      isa::ball_init, isa::normalize, \
   isa::triad, isa::conv3x3,  isa::conv3x3_weight, isa::crops}

Kernels choose() {
#if FA_X86
  const char *forced = std::getenv("FASTADV_CPU_ISA");
  const auto wanted = [&](const char *name) { return !forced || !std::strcmp(forced, name); };
  if (wanted("avx512") && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    return FA_ENTRY("avx512", fa_avx512);
  if (wanted("avx2") && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    return FA_ENTRY("avx2", fa_avx2);
#endif
  return FA_ENTRY("baseline", fa_baseline);
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
int32_t fa_pgd_step(const FaStep *args) { return kernels().pgd_step(*args); }
int32_t fa_apgd_step(const FaStep *args) { return kernels().apgd_step(*args); }
int32_t fa_ball_init(const FaInit *args) { return kernels().ball_init(*args); }
int32_t fa_normalize(const FaNormalize *args) { return kernels().normalize(*args); }
int32_t fa_conv3x3(const FaConv3x3 *args) { return kernels().conv3x3(*args); }
int32_t fa_conv3x3_weight(const FaConv3x3Weight *args) { return kernels().conv3x3_weight(*args); }
int32_t fa_crops(const FaCrops *args) { return kernels().crops(*args); }
int32_t fa_triad(const FaTriad *args) { return kernels().triad(*args); }
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
const char *fa_isa() { return kernels().name; }
}
