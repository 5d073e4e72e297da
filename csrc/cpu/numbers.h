// Number formats and Philox4x32-10, shared by every instruction-set build and the CUDA kernels.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define FA_HD __host__ __device__
#else
#define FA_HD
#endif

namespace FA_ISA {

struct bf16 { uint16_t bits; };

#if defined(__FLT16_MAX__) && !defined(__CUDACC__)
using f16 = _Float16;
inline float to_float(f16 v) { return static_cast<float>(v); }
#define FA_HAS_F16 1
#else
#define FA_HAS_F16 0
#endif

inline float to_float(float v) { return v; }
inline float to_float(bf16 v) {
  uint32_t bits = static_cast<uint32_t>(v.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

// Clean images: a uint8 pixel is one correctly rounded division, as in the reference.
inline float to_pixel(float v) { return v; }
inline float to_pixel(uint8_t v) { return static_cast<float>(v) / 255.0f; }

struct Words { uint32_t v[4]; };

// Salmon et al., SC 2011. The counter layout is documented in kernels/philox.py.
FA_HD inline Words philox(uint32_t c0, uint32_t c1, uint64_t sample, uint64_t seed) {
  uint32_t c2 = static_cast<uint32_t>(sample), c3 = static_cast<uint32_t>(sample >> 32);
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c0 = n0, c1 = static_cast<uint32_t>(p1), c2 = n2, c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

constexpr float kUnit = 1.0f / 16777216.0f;  // 2^-24
FA_HD inline float uniform(uint32_t word) { return static_cast<float>(word >> 8) * kUnit; }

}  // namespace FA_ISA
