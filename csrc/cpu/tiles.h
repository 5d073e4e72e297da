// How a batch is cut into tiles that fit a core's cache, and how threads share them out.
//
// Per-channel constants are laid out as a pattern whose period is a multiple of kLanes, so NCHW
// and channels_last share one loop.
#pragma once
#include <algorithm>
#include <numeric>
#include <type_traits>
#include <vector>

#include "interface.h"
#include "vectors.h"

namespace FA_ISA {
namespace {

constexpr int64_t kTile = 6144;  // elements; 3 float streams of one tile fit a 96 KiB slice of L2

// Per-channel constants repeated to a whole number of vectors.
struct Pattern {
  int64_t period;
  std::vector<float> mean, inv_std;

  Pattern(const float *m, const float *s, int64_t channels) {
    period = std::lcm(channels, kLanes);
    for (int64_t i = 0; i < period; ++i) {
      mean.push_back(m[i % channels]);
      inv_std.push_back(1.0f / s[i % channels]);
    }
  }
};

// How the elements of one sample split into tiles that each start a fresh pattern.
struct Tiling {
  std::vector<Pattern> patterns;  // one for channels_last, one per channel for NCHW
  int64_t row, plane, tile, tiles_per_plane, tiles;

  Tiling(const float *mean, const float *std, int64_t c, int64_t hw, bool channels_last)
      : row(c * hw) {
    if (channels_last) {
      patterns.emplace_back(mean, std, c);
      plane = row;
    } else {
      for (int64_t i = 0; i < c; ++i) patterns.emplace_back(mean + i, std + i, 1);
      plane = hw;
    }
    const int64_t period = patterns[0].period;
    tile = std::max(period, kTile / period * period);
    tiles_per_plane = (plane + tile - 1) / tile;
    tiles = tiles_per_plane * static_cast<int64_t>(patterns.size());
  }
  const Pattern &pattern(int64_t t) const { return patterns[t / tiles_per_plane]; }
  int64_t begin(int64_t t) const {
    return t / tiles_per_plane * plane + t % tiles_per_plane * tile;
  }
  int64_t size(int64_t t) const { return std::min(tile, plane - t % tiles_per_plane * tile); }
};

// Calls body(i, j, n) for every vector of a tile: elements i to i + n, pattern index j. n is a
// compile-time kLanes but for the last vector, so that loads and stores stay whole.
template <typename Body> inline void for_tile(int64_t size, int64_t period, const Body &body) {
  const std::integral_constant<int64_t, kLanes> full;
  int64_t i = 0, j = 0;
  for (; i + kLanes <= size; i += kLanes) {
    body(i, j, full);
    j += kLanes;
    j = j == period ? 0 : j;
  }
  if (i < size) body(i, j, size - i);
}

// Writes z, from the first element of a tile on, in one of three formats or not at all. This is
// decided per vector: the branch is always predicted, and a quarter as much code is compiled.
class Output {
 public:
  // With `past_caches`, whole vectors at aligned addresses bypass the caches.
  Output(void *z, int32_t dtype, int64_t first, bool past_caches) : dtype_(z ? dtype : FA_NONE) {
    const int64_t size = dtype == FA_F32 ? 4 : 2;
    z_ = static_cast<char *>(z) + first * size;
    stream_ = past_caches && reinterpret_cast<uintptr_t>(z_) % (kLanes * size) == 0;
  }

  // Always inlined: a call would spill every register of the loop around it.
  template <typename N>
  [[gnu::always_inline]] void put(int64_t i, vf x, vf mean, vf inv_std, N n) const {
    if (dtype_ == FA_NONE) return;
    const vf v = (x - mean) * inv_std;
    if (dtype_ == FA_F32) write(reinterpret_cast<float *>(z_) + i, v, n);
    if (dtype_ == FA_BF16) write(reinterpret_cast<bf16 *>(z_) + i, v, n);
#if FA_HAS_F16
    if (dtype_ == FA_F16) write(reinterpret_cast<f16 *>(z_) + i, v, n);
#endif
  }

 private:
  template <typename T, typename N> [[gnu::always_inline]] void write(T *p, vf v, N n) const {
    if (!std::is_same_v<N, int64_t> && stream_) stream(p, v);
    else store(p, v, n);
  }

  char *z_;
  int32_t dtype_;
  bool stream_;
};

// Calls f with a value of the C++ type behind a dtype code; returns false for an unknown code.
template <typename F> bool with_float(int32_t dtype, const F &f) {
  switch (dtype) {
  case FA_F32: f(float{}); return true;
  case FA_BF16: f(bf16{}); return true;
#if FA_HAS_F16
  case FA_F16: f(f16{}); return true;
#endif
  default: return false;
  }
}
template <typename F> bool with_clean(int32_t dtype, const F &f) {
  switch (dtype) {
  case FA_F32: f(float{}); return true;
  case FA_U8: f(uint8_t{}); return true;
  default: return false;
  }
}

}  // namespace
}  // namespace FA_ISA
