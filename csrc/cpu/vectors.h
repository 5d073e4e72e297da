// Vectors of floats as wide as the instruction set, in the compiler's own vector types: they
// become AVX-512, AVX2 or SSE code without intrinsics. (Left to itself, GCC 12 did not vectorise
// these loops: 14 GB/s where the vectors reach 30 on two Zen 4 cores.)
#pragma once
#include <cfloat>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace FA_ISA {

#if defined(__AVX512F__)
constexpr int64_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int64_t kLanes = 8;
#else
constexpr int64_t kLanes = 4;
#endif

typedef float vf __attribute__((vector_size(4 * kLanes)));
typedef int32_t vi __attribute__((vector_size(4 * kLanes)));
typedef uint32_t vu __attribute__((vector_size(4 * kLanes)));
typedef uint16_t vh __attribute__((vector_size(2 * kLanes)));
typedef uint8_t vb __attribute__((vector_size(kLanes)));

inline vf splat(float v) { return vf{} + v; }
inline vf clamp(vf v, vf low, vf high) {
  v = v < low ? low : v;
  return v > high ? high : v;
}
// All ones where |v| is a finite number.
inline vi finite(vf v) {
  const vf magnitude = reinterpret_cast<vf>(reinterpret_cast<vu>(v) & 0x7FFFFFFFu);
  return magnitude <= splat(FLT_MAX);
}

inline double sum(vf v) {
  double total = 0;
  for (int64_t l = 0; l < kLanes; ++l) total += v[l];
  return total;
}
inline int64_t sum(vi v) {
  int64_t total = 0;
  for (int64_t l = 0; l < kLanes; ++l) total += v[l];
  return total;
}

// Loads and stores of n <= kLanes elements, the missing ones zero. A constant n costs nothing.
template <typename V, typename T, typename N> inline V raw(const T *p, N n) {
  V v{};
  std::memcpy(&v, p, static_cast<size_t>(n) * sizeof(T));
  return v;
}
template <typename N> inline vf load(const float *p, N n) { return raw<vf>(p, n); }
template <typename N> inline vf load(const bf16 *p, N n) {
  return reinterpret_cast<vf>(__builtin_convertvector(raw<vh>(p, n), vu) << 16);
}
#if FA_HAS_F16
template <typename N> inline vf load(const f16 *p, N n) {
  vf v{};
  for (int64_t l = 0; l < n; ++l) v[l] = to_float(p[l]);
  return v;
}
#endif
template <typename N> inline vf load_pixels(const float *p, N n) { return raw<vf>(p, n); }
template <typename N> inline vf load_pixels(const uint8_t *p, N n) {
  const vi whole = __builtin_convertvector(raw<vb>(p, n), vi);
  return __builtin_convertvector(whole, vf) / 255.0f;
}

template <typename N> inline void store(float *p, vf v, N n) {
  std::memcpy(p, &v, static_cast<size_t>(n) * 4);
}
template <typename N> inline void store(bf16 *p, vf v, N n) {  // nearest even; v is finite
  const vu bits = reinterpret_cast<vu>(v);
  const vh half = __builtin_convertvector((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, vh);
  std::memcpy(p, &half, static_cast<size_t>(n) * 2);
}
#if FA_HAS_F16
template <typename N> inline void store(f16 *p, vf v, N n) {
  for (int64_t l = 0; l < n; ++l) p[l] = static_cast<f16>(v[l]);
}
#endif

}  // namespace FA_ISA
