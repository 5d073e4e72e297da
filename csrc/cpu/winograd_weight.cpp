// The weight gradient of the 3x3 convolutions of winograd.cpp. It is the same bilinear form read
// the other way: dw = G^T [ sum over tiles (B^T x B) . (A g A^T) ] G, with as many products.
#include "winograd.h"

namespace FA_ISA {
namespace {

constexpr int64_t kInner = 128;                   // tiles summed before the next channels: L1
constexpr int kOuterRows = kLanes == 16 ? 8 : 4;  // divides the channels

// u[r][0..kPanel) (+)= sum over the tiles of m[tile][r] * v[tile][0..kPanel), for Rows rows.
template <int Rows>
inline void outer(const float *m, int64_t stride, const float *v, int64_t count, bool add,
                  float *u) {
  vf sums[Rows][2] = {};
  for (int64_t t = 0; t < count; ++t) {
    const vf v0 = at(v + t * kPanel), v1 = at(v + t * kPanel + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      const vf s = splat(m[t * stride + r]);
      sums[r][0] += s * v0;
      sums[r][1] += s * v1;
    }
  }
  // Blocks of tiles are summed by themselves first: a third of the rounding error.
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r)
    for (int half = 0; half < 2; ++half) {
      float *const to = u + r * kPanel + half * kLanes;
      put(to, add ? at(to) + sums[r][half] : sums[r][half]);
    }
}

// Transformed gradient of one output channel and a panel of inputs, back to nine taps.
template <typename T>
void weight_back(const FaConv3x3Weight &p, const float *u, int64_t of_point, int64_t out,
                 int64_t first) {
  constexpr int64_t side = T::kSide;
  for (int64_t j = 0; j < std::min(kPanel, p.in_channels - first); j += kLanes) {
    vf rows[3][side];
    for (int64_t column = 0; column < side; ++column) {
      vf line[side], w[3];
      for (int64_t i = 0; i < side; ++i) line[i] = at(u + (i * side + column) * of_point + j);
      T::weight_back(line, w);
      for (int64_t i = 0; i < 3; ++i) rows[i][column] = w[i];
    }
    for (int64_t i = 0; i < 3; ++i) {
      vf w[3];
      T::weight_back(rows[i], w);
      for (int64_t l = 0; l < 3; ++l)
        put(p.weight + (out * 9 + i * 3 + l) * p.in_channels + first + j, w[l]);
    }
  }
}

// Chunks of tiles are transformed for all threads; then each takes points of panels of input
// channels, whose sums u[panel][point][out][kPanel] wait for the next chunk.
template <typename T> int32_t weight_gradient(const FaConv3x3Weight &p) {
  const Tiles<T> tiles(p.n, p.h, p.w);
  const int64_t in = p.in_channels, out = p.out_channels;
  const int64_t panels = (in + kPanel - 1) / kPanel, points = kPoints<T>;
  const int64_t sums = panels * points * out * kPanel;
  // With as many bytes of tiles as of sums, reading both costs no more than writing the tiles.
  const int64_t per_tile = points * (panels * kPanel + out);
  const int64_t wanted = std::max(kChunkBytes / 4, sums) / per_tile;
  const int64_t chunk = std::min(std::max(wanted, kBlock), tiles.count);
  static thread_local Scratch shared;
  float *const u = shared.floats(sums + chunk * per_tile);
  if (!u) return 2;
  float *const v = u + sums;                              // [point][panel][tile][kPanel]
  float *const m = v + chunk * points * panels * kPanel;  // [point][tile][out]
  const Images x{p.x, nullptr, p.n, p.h, p.w, in}, grad{p.grad, nullptr, p.n, p.h, p.w, out};
#pragma omp parallel num_threads(p.threads)
  {
    for (int64_t begin = 0; begin < tiles.count; begin += chunk) {
      const int64_t count = std::min(chunk, tiles.count - begin);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < count; ++t) {
        transform_tile<T, Input<T>>(x, tiles, begin + t, [=](int64_t point, int64_t c) {
          return v + ((point * panels + c / kPanel) * count + t) * kPanel + c % kPanel;
        });
        transform_tile<T, Gradient<T>>(grad, tiles, begin + t, [=](int64_t point, int64_t c) {
          return m + (point * count + t) * out + c;
        });
      }
#pragma omp for schedule(dynamic)
      for (int64_t item = 0; item < panels * points; ++item) {
        const int64_t panel = item / points, point = item % points;
        const float *const vs = v + (point * panels + panel) * count * kPanel;
        const float *const ms = m + point * count * out;
        float *const us = u + item * out * kPanel;
        for (int64_t t = 0; t < count; t += kInner) {
          const int64_t size = std::min(kInner, count - t);
          for (int64_t o = 0; o < out; o += kOuterRows)
            outer<kOuterRows>(ms + t * out + o, out, vs + t * kPanel, size, begin + t > 0,
                              us + o * kPanel);
        }
      }
    }
#pragma omp for schedule(static)
    for (int64_t item = 0; item < panels * out; ++item) {
      const int64_t panel = item / out, o = item % out;
      weight_back<T>(p, u + (panel * points * out + o) * kPanel, out * kPanel, o, panel * kPanel);
    }
  }
  return 0;
}

}  // namespace

int32_t conv3x3_weight(const FaConv3x3Weight &p) {
  if (p.in_channels % kLanes || p.out_channels % kLanes) return 1;
  return p.h <= 2 && p.w <= 2 ? weight_gradient<Whole>(p) : weight_gradient<Tiled>(p);
}

}  // namespace FA_ISA
