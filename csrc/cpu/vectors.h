// Vectors of floats as wide as the instruction set, in the compiler's own vector types: they
// become AVX-512, AVX2 or SSE code without intrinsics. (Left to itself, GCC 12 did not vectorise
// these loops: 14 GB/s where the vectors reach 30 on two Zen 4 cores.)
#pragma once
#include <cfloat>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

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

// Spelled out, because the compiler must really add in vf{} + v (-0 and NaN) and fails on a loop.
inline vf splat(float v) {
#if defined(__AVX512F__)
  return vf{v, v, v, v, v, v, v, v, v, v, v, v, v, v, v, v};
#elif defined(__AVX2__)
  return vf{v, v, v, v, v, v, v, v};
#else
  return vf{v, v, v, v};
#endif
}
// These are two instructions; GCC 12 makes four of comparisons if a bound is a constant.
inline vf clamp(vf v, vf low, vf high) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_maskz_min_ps(
      0xFFFF, reinterpret_cast<__m512>(high),
      _mm512_maskz_max_ps(0xFFFF, reinterpret_cast<__m512>(low), reinterpret_cast<__m512>(v))));
#elif defined(__AVX2__)
  return reinterpret_cast<vf>(
      _mm256_min_ps(reinterpret_cast<__m256>(high),
                    _mm256_max_ps(reinterpret_cast<__m256>(low), reinterpret_cast<__m256>(v))));
#else
  v = low > v ? low : v;
  return high < v ? high : v;
#endif
}
inline vu magnitude(vf v) { return reinterpret_cast<vu>(v) & 0x7FFFFFFFu; }
constexpr uint32_t kInfinity = 0x7F800000u;  // bits
inline vf finite_or_zero(vf v) { return magnitude(v) < kInfinity ? v : vf{}; }
// size * sign(v), and zero where v is zero or not finite.
inline vf with_sign(vf size, vf v) {
  const vu bits = reinterpret_cast<vu>(size) | (reinterpret_cast<vu>(v) & 0x80000000u);
  return magnitude(v) - 1u < kInfinity - 1u ? reinterpret_cast<vf>(bits) : vf{};
}

inline double sum(vf v) {
  double total = 0;
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
// Spelled out for F16C: a loop over lanes becomes one conversion per element. (The forms
// without a mask make GCC 12 warn of an uninitialised value in its own header.)
template <typename N> inline vf load(const f16 *p, N n) {
#if defined(__AVX512F__)
  return reinterpret_cast<vf>(_mm512_maskz_cvtph_ps(0xFFFF, raw<__m256i>(p, n)));
#elif defined(__F16C__)
  return reinterpret_cast<vf>(_mm256_cvtph_ps(raw<__m128i>(p, n)));
#else
  vf v{};
  for (int64_t l = 0; l < n; ++l) v[l] = to_float(p[l]);
  return v;
#endif
}
#endif
template <typename N> inline vf load_pixels(const float *p, N n) { return raw<vf>(p, n); }
template <typename N> inline vf load_pixels(const uint8_t *p, N n) {
  const vi whole = __builtin_convertvector(raw<vb>(p, n), vi);
  return __builtin_convertvector(whole, vf) / 255.0f;
}

// Vectors as they lie in memory, one overload per number format.
inline vf packed(const float *, vf v) { return v; }
inline vh packed(const bf16 *, vf v) {  // nearest even; v is finite
  const vu bits = reinterpret_cast<vu>(v);
  return __builtin_convertvector((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16, vh);
}
#if FA_HAS_F16
inline vh packed(const f16 *, vf v) {
#if defined(__AVX512F__)
  return reinterpret_cast<vh>(
      _mm512_maskz_cvtps_ph(0xFFFF, reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
  return reinterpret_cast<vh>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT));
#else
  vh out{};
  for (int64_t l = 0; l < kLanes; ++l) {
    const f16 half = static_cast<f16>(v[l]);
    std::memcpy(reinterpret_cast<char *>(&out) + 2 * l, &half, 2);
  }
  return out;
#endif
}

// The float16 vector nearest to v that is nowhere larger in magnitude.
inline vh toward_zero(vf v) {
  const vh half = packed(static_cast<const f16 *>(nullptr), v);
  f16 lanes[kLanes];
  std::memcpy(lanes, &half, sizeof half);
  const vf back = load(lanes, kLanes);
  const vi too_long = (back > 0.0f ? back : -back) > (v > 0.0f ? v : -v);
  // One less in the bits is one unit less in magnitude, whatever the sign.
  return half + __builtin_convertvector(too_long, vh);
}
#endif

template <typename T, typename N> inline void store(T *p, vf v, N n) {
  const auto bits = packed(p, v);
  std::memcpy(p, &bits, static_cast<size_t>(n) * sizeof(T));
}

// Asks for the cache line of p[i] to come to the second-level cache. i counts whole vectors, of
// which only the first in each line asks.
template <typename T> inline void prefetch(const T *p, int64_t i) {
  if (kLanes * sizeof(T) >= 64 || i * sizeof(T) % 64 == 0) __builtin_prefetch(p + i, 0, 2);
}

// Stores past the caches a whole vector whose address is a multiple of its size. The barrier that
// ends a parallel loop has a locked instruction, which orders such stores for other threads.
template <typename T> inline void stream(T *p, vf v) {
  const auto bits = packed(p, v);
#if defined(__AVX512F__)
  if constexpr (sizeof bits == 64)
    return _mm512_stream_ps(reinterpret_cast<float *>(p), reinterpret_cast<__m512>(bits));
#endif
#if defined(__AVX__)
  if constexpr (sizeof bits == 32)
    return _mm256_stream_ps(reinterpret_cast<float *>(p), reinterpret_cast<__m256>(bits));
#endif
#if defined(__x86_64__)
  if constexpr (sizeof bits == 16)
    return _mm_stream_ps(reinterpret_cast<float *>(p), reinterpret_cast<__m128>(bits));
#endif
  std::memcpy(p, &bits, sizeof bits);
}

}  // namespace FA_ISA
