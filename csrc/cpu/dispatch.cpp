// Chooses the instruction set once, at the first call. FASTADV_CPU_ISA forces one that the
// machine has, for tests and benchmarks.
#include <cstdlib>
#include <cstring>

#include "step.h"

#define FA_DECLARE(isa)                         \
  namespace isa {                               \
  int32_t pgd_step(const FaStep &);             \
  int32_t ball_init(const FaInit &);            \
  int32_t normalize(const FaNormalize &);       \
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
  int32_t (*ball_init)(const FaInit &);
  int32_t (*normalize)(const FaNormalize &);
};

#define FA_ENTRY(label, isa) \
  { label, isa::pgd_step, isa::ball_init, isa::normalize }

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

}  // namespace

extern "C" {
int32_t fa_pgd_step(const FaStep *args) { return kernels().pgd_step(*args); }
int32_t fa_ball_init(const FaInit *args) { return kernels().ball_init(*args); }
int32_t fa_normalize(const FaNormalize *args) { return kernels().normalize(*args); }
int32_t fa_has_f16() {
#if defined(__FLT16_MAX__)
  return 1;
#else
  return 0;
#endif
}
const char *fa_isa() { return kernels().name; }
}
