// Chunks of consecutive elements, moved by one load or store as wide as 16 bytes, single elements,
// and sums over the threads of a block.
#pragma once
#include "arithmetic.h"
#include "device.cuh"

namespace FA_ISA {

// Elements per chunk: 16 bytes of the widest type take part in one instruction.
template <typename... T> FA_HD constexpr int chunk_of() {
  size_t widest = 1;
  ((widest = sizeof(T) > widest ? sizeof(T) : widest), ...);
  return static_cast<int>(16 / widest);
}

template <int kBytes> struct Word;
template <> struct Word<4> { using type = uint32_t; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

// V elements of type T as 32-bit words, or one element as it is.
template <typename T, int V> struct Chunk {
  using Whole = typename Word<sizeof(T) * V>::type;
  uint32_t w[sizeof(T) * V / 4];
};
template <typename T> struct Chunk<T, 1> { T v; };

FC_DEVICE void split(uint32_t *w, const uint32_t &v) { w[0] = v; }
FC_DEVICE void split(uint32_t *w, const uint2 &v) { w[0] = v.x, w[1] = v.y; }
FC_DEVICE void split(uint32_t *w, const uint4 &v) {
  w[0] = v.x, w[1] = v.y, w[2] = v.z, w[3] = v.w;
}
FC_DEVICE void join(uint32_t *p, const uint32_t *w) { *p = w[0]; }
FC_DEVICE void join(uint2 *p, const uint32_t *w) { *p = make_uint2(w[0], w[1]); }
FC_DEVICE void join(uint4 *p, const uint32_t *w) { *p = make_uint4(w[0], w[1], w[2], w[3]); }

template <typename T, int V> FC_DEVICE Chunk<T, V> load(const T *p) {
  Chunk<T, V> chunk;
  if constexpr (V == 1) chunk.v = *p;
  else split(chunk.w, *reinterpret_cast<const typename Chunk<T, V>::Whole *>(p));
  return chunk;
}
// The same for global memory that nothing writes meanwhile.
template <typename T, int V> FC_DEVICE Chunk<T, V> load_constant(const T *p) {
  Chunk<T, V> chunk;
  if constexpr (V == 1) chunk.v = *p;
  else split(chunk.w, __ldg(reinterpret_cast<const typename Chunk<T, V>::Whole *>(p)));
  return chunk;
}

FC_DEVICE float float_of(uint32_t bits) {
  float v;
  memcpy(&v, &bits, 4);
  return v;
}
FC_DEVICE uint32_t bits_of(float v) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  return bits;
}

// Element k of a chunk as a float; bytes are pixels in units of 1/255.
FC_DEVICE float get(const Chunk<float, 1> &c, int) { return c.v; }
FC_DEVICE float get(const Chunk<bf16, 1> &c, int) { return float_of(uint32_t{c.v.bits} << 16); }
FC_DEVICE float get(const Chunk<f16, 1> &c, int) { return half_to_float(c.v); }
FC_DEVICE float get(const Chunk<uint8_t, 1> &c, int) {
  return pixel_of_byte(static_cast<float>(c.v));
}
template <int V> FC_DEVICE float get(const Chunk<float, V> &c, int k) { return float_of(c.w[k]); }
template <int V> FC_DEVICE float get(const Chunk<bf16, V> &c, int k) {
  return float_of(k % 2 ? c.w[k / 2] & 0xFFFF0000u : c.w[k / 2] << 16);
}
template <int V> FC_DEVICE float get(const Chunk<f16, V> &c, int k) {
  return half_to_float(half_of(static_cast<uint16_t>(c.w[k / 2] >> (k % 2 * 16))));
}
template <int V> FC_DEVICE float get(const Chunk<uint8_t, V> &c, int k) {
  return pixel_of_byte(static_cast<float>(c.w[k / 4] >> (k % 4 * 8) & 0xFFu));
}

FC_DEVICE void pack(Chunk<float, 1> &c, const float (&v)[1]) { c.v = v[0]; }
FC_DEVICE void pack(Chunk<bf16, 1> &c, const float (&v)[1]) {
  c.v.bits = static_cast<uint16_t>(pack_bf16(v[0], 0.0f));
}
FC_DEVICE void pack(Chunk<f16, 1> &c, const float (&v)[1]) {
  c.v = half_of(static_cast<uint16_t>(pack_f16(v[0], 0.0f)));
}
template <int V> FC_DEVICE void pack(Chunk<float, V> &c, const float (&v)[V]) {
#pragma unroll
  for (int k = 0; k < V; ++k) c.w[k] = bits_of(v[k]);
}
template <int V> FC_DEVICE void pack(Chunk<bf16, V> &c, const float (&v)[V]) {
#pragma unroll
  for (int k = 0; k < V; k += 2) c.w[k / 2] = pack_bf16(v[k], v[k + 1]);
}
template <int V> FC_DEVICE void pack(Chunk<f16, V> &c, const float (&v)[V]) {
#pragma unroll
  for (int k = 0; k < V; k += 2) c.w[k / 2] = pack_f16(v[k], v[k + 1]);
}

template <typename T, int V> FC_DEVICE void store(T *p, const float (&v)[V]) {
  Chunk<T, V> chunk;
  pack(chunk, v);
  if constexpr (V == 1) *p = chunk.v;
  else join(reinterpret_cast<typename Chunk<T, V>::Whole *>(p), chunk.w);
}

// What a step reads of the images.
struct Element { float state, clean, grad; };

template <typename S, typename C, typename G, int V> struct Elements {
  Chunk<S, V> state;
  Chunk<C, V> clean;
  Chunk<G, V> grad;

  FC_DEVICE Element operator[](int k) const { return {get(state, k), get(clean, k), get(grad, k)}; }
};

template <int V> struct Width { static constexpr int value = V; };

template <typename S, typename C, typename G> struct Images {
  S *x;
  const C *x0;
  const G *grad;

  // In global memory.
  template <int V> FC_DEVICE Elements<S, C, G, V> operator()(Width<V>, uint32_t at) const {
    return {load<S, V>(x + at), load_constant<C, V>(x0 + at), load_constant<G, V>(grad + at)};
  }
  template <int V> FC_DEVICE Elements<S, C, G, V> shared_chunk(uint32_t at) const {
    return {load<S, V>(x + at), load<C, V>(x0 + at), load<G, V>(grad + at)};
  }
};

// The same without a gradient.
template <typename C, int V> struct Pair {
  Chunk<float, V> state;
  Chunk<C, V> clean;
};
template <typename C> struct Pairs {
  float *x;
  const C *x0;

  template <int V> FC_DEVICE Pair<C, V> operator()(Width<V>, uint32_t at) const {
    return {load<float, V>(x + at), load_constant<C, V>(x0 + at)};
  }
};

// Sums over threads add in the same order always.
template <typename T> FC_DEVICE T warp_sum(T v) {
#pragma unroll
  for (int distance = 16; distance; distance /= 2) v += __shfl_xor_sync(kFullWarp, v, distance);
  return v;
}

// Sum over a block of kWarps warps, all threads of which call it: in all lanes of the first warp.
// `scratch` has kWarps doubles and is free again after the block's next barrier.
template <int kWarps> FC_DEVICE double block_sum(double v, double *scratch) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  v = warp_sum(v);
  if (lane == 0) scratch[warp] = v;
  __syncthreads();
  return warp ? v : warp_sum(lane < kWarps ? scratch[lane] : 0.0);
}
// The same for three sums; `scratch` is three times as large.
template <int kWarps> FC_DEVICE Sums block_sum(const Sums &s, double *scratch) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Sums mine = {warp_sum(s.gg), warp_sum(s.dg), warp_sum(s.dd)};
  if (lane == 0)
    scratch[warp] = mine.gg, scratch[kWarps + warp] = mine.dg, scratch[2 * kWarps + warp] = mine.dd;
  __syncthreads();
  if (warp) return mine;
  const auto total = [&](const double *v) { return warp_sum(lane < kWarps ? v[lane] : 0.0); };
  return {total(scratch), total(scratch + kWarps), total(scratch + 2 * kWarps)};
}

// Every thread calls it. Whole numbers, so the order of the additions does not matter.
FC_DEVICE void count_up(unsigned long long *counter, int bad) {
  if (!counter) return;
  bad = warp_sum(bad);
  if (bad && threadIdx.x % 32 == 0) atomicAdd(counter, static_cast<unsigned long long>(bad));
}

struct Constants {
  float mean, inv_std;

  FC_DEVICE float normalised(float image) const { return (image - mean) * inv_std; }
};

// The table of all channels in shared memory. Made before a block loads its images and filled
// after it has asked for them, so that the one wait hides behind the other.
class Table {
 public:
  FC_DEVICE Table(Constants *entries, const float *mean, const float *std, const Channels &channels)
      : entries_(entries), mean_(mean), std_(std), count_(channels.count.divisor) {
    if (threadIdx.x < count_) first_ = {mean[threadIdx.x], std[threadIdx.x]};
  }
  // A barrier must follow.
  FC_DEVICE void fill() {
    if (threadIdx.x < count_) entries_[threadIdx.x] = {first_.mean, 1.0f / first_.inv_std};
    for (uint32_t c = threadIdx.x + blockDim.x; c < count_; c += blockDim.x)
      entries_[c] = {mean_[c], 1.0f / std_[c]};
  }
  FC_DEVICE Constants operator[](uint32_t channel) const { return entries_[channel]; }

 private:
  Constants *entries_;
  const float *mean_, *std_;
  uint32_t count_;
  Constants first_ = {};
};

}  // namespace FA_ISA
