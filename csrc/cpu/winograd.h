// What winograd.cpp and winograd_weight.cpp share: the transforms, each of one line (both
// dimensions take them in turn), the tiles of a batch, and the memory of a thread.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "interface.h"
#include "vectors.h"

namespace FA_ISA {
namespace {

inline vf at(const float *p) { return raw<vf>(p, kLanes); }
inline void put(float *p, vf v) { std::memcpy(p, &v, sizeof v); }

// Tiles of 4x4 outputs from 6x6 inputs. kSide, kIn, kOut: points, inputs and outputs of a line.
struct Tiled {
  static constexpr int64_t kSide = 6, kIn = 6, kOut = 4, kBorder = 1;
  static constexpr float a1 = 0.625f, b1 = 1.5f;
  static constexpr float a2 = a1 * a1, b2 = b1 * b1, a3 = a2 * a1, b3 = b2 * b1;
  static constexpr float na = 1 / (2 * a2 * (a2 - b2)), nb = 1 / (2 * b2 * (b2 - a2));

  // B^T d
  static inline void input(const vf d[6], vf t[6]) {
    t[0] = a2 * b2 * d[0] - (a2 + b2) * d[2] + d[4];
    t[5] = a2 * b2 * d[1] - (a2 + b2) * d[3] + d[5];
    const vf ea = d[4] - b2 * d[2], oa = a1 * (d[3] - b2 * d[1]);
    const vf eb = d[4] - a2 * d[2], ob = b1 * (d[3] - a2 * d[1]);
    t[1] = ea + oa, t[2] = ea - oa, t[3] = eb + ob, t[4] = eb - ob;
  }
  // G w
  static inline void weight(const vf w[3], vf t[6]) {
    t[0] = w[0] * (1 / (a2 * b2));
    const vf ea = (w[0] + a2 * w[2]) * na, oa = w[1] * (a1 * na);
    const vf eb = (w[0] + b2 * w[2]) * nb, ob = w[1] * (b1 * nb);
    t[1] = ea + oa, t[2] = ea - oa, t[3] = eb + ob, t[4] = eb - ob;
    t[5] = w[2];
  }
  // A^T m
  static inline void output(const vf m[6], vf y[4]) {
    const vf sa = m[1] + m[2], da = m[1] - m[2], sb = m[3] + m[4], db = m[3] - m[4];
    y[0] = m[0] + sa + sb;
    y[1] = a1 * da + b1 * db;
    y[2] = a2 * sa + b2 * sb;
    y[3] = a3 * da + b3 * db + m[5];
  }
  // A g
  static inline void output_back(const vf y[4], vf m[6]) {
    const vf ea = y[0] + a2 * y[2], oa = a1 * y[1] + a3 * y[3];
    const vf eb = y[0] + b2 * y[2], ob = b1 * y[1] + b3 * y[3];
    m[0] = y[0], m[1] = ea + oa, m[2] = ea - oa, m[3] = eb + ob, m[4] = eb - ob, m[5] = y[3];
  }
  // G^T u
  static inline void weight_back(const vf t[6], vf w[3]) {
    const vf sa = na * (t[1] + t[2]), sb = nb * (t[3] + t[4]);
    w[0] = t[0] * (1 / (a2 * b2)) + sa + sb;
    w[1] = (t[1] - t[2]) * (a1 * na) + (t[3] - t[4]) * (b1 * nb);
    w[2] = a2 * sa + b2 * sb + t[5];
  }
};

// A line of two pixels between zeros: y0 = w1 d0 + w2 d1 and y1 = w0 d0 + w1 d1 from three
// products, of d0 + d1, d1 and d0. Nothing but sums: it rounds like a direct convolution.
struct Whole {
  static constexpr int64_t kSide = 3, kIn = 2, kOut = 2, kBorder = 0;

  static inline void input(const vf d[2], vf t[3]) { t[0] = d[0] + d[1], t[1] = d[1], t[2] = d[0]; }
  static inline void weight(const vf w[3], vf t[3]) {
    t[0] = w[1], t[1] = w[2] - w[1], t[2] = w[0] - w[1];
  }
  static inline void output(const vf m[3], vf y[2]) { y[0] = m[0] + m[1], y[1] = m[0] + m[2]; }
  static inline void output_back(const vf y[2], vf m[3]) {
    m[0] = y[0] + y[1], m[1] = y[0], m[2] = y[1];
  }
  static inline void weight_back(const vf t[3], vf w[3]) {
    w[0] = t[2], w[1] = t[0] - t[1] - t[2], w[2] = t[1];
  }
};

constexpr int64_t kBlock = 48;             // tiles whose products stay in L2
constexpr int64_t kChunkBytes = 12 << 20;  // transformed input shared through L3
constexpr int64_t kPanel = 2 * kLanes;     // channels of a panel

template <typename T> constexpr int64_t kPoints = T::kSide * T::kSide;

// What a tile is transformed from: the input with its border, or the gradient of the output.
template <typename T> struct Input {
  static constexpr int64_t kFrom = T::kIn, kBorder = T::kBorder;
  static inline void line(const vf d[], vf t[]) { T::input(d, t); }
};
template <typename T> struct Gradient {
  static constexpr int64_t kFrom = T::kOut, kBorder = 0;
  static inline void line(const vf d[], vf t[]) { T::output_back(d, t); }
};

// Images [n, h, w, channels], counted only where the mask, if there is one, is positive.
struct Images {
  const float *x, *mask;
  int64_t n, h, w, channels;
};

// Where in which image a tile is.
template <typename T> struct Tiles {
  int64_t h, w, rows, columns, count;
  Tiles(int64_t n, int64_t height, int64_t width)
      : h(height), w(width), rows((h + T::kOut - 1) / T::kOut),
        columns((w + T::kOut - 1) / T::kOut), count(n * rows * columns) {}
  void locate(int64_t tile, int64_t &image, int64_t &y, int64_t &x) const {
    x = tile % columns * T::kOut;
    y = tile / columns % rows * T::kOut;
    image = tile / columns / rows;
  }
};

// One tile transformed: kLanes channels from c at a point go to at(point, c).
template <typename T, typename From, typename At>
inline void transform_tile(const Images &from, const Tiles<T> &tiles, int64_t tile, At at_point) {
  constexpr int64_t side = T::kSide, border = From::kBorder, size = From::kFrom, none = 0;
  int64_t image, y, x;
  tiles.locate(tile, image, y, x);
  const int64_t top = std::max(border - y, none), bottom = std::min(from.h - y + border, size);
  const int64_t left = std::max(border - x, none), right = std::min(from.w - x + border, size);
  const int64_t channels = from.channels;
  const int64_t origin = ((image * from.h + y - border) * from.w + x - border) * channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    vf rows[side][size];  // columns transformed
    for (int64_t j = 0; j < size; ++j) {
      vf d[size]{}, t[side];
      if (j >= left && j < right)
        for (int64_t i = top; i < bottom; ++i) {
          const int64_t k = origin + (i * from.w + j) * channels + c;
          d[i] = at(from.x + k);
          if (from.mask) d[i] = at(from.mask + k) > 0.0f ? d[i] : vf{};
        }
      From::line(d, t);
      for (int64_t i = 0; i < side; ++i) rows[i][j] = t[i];
    }
    for (int64_t i = 0; i < side; ++i) {
      vf t[side];
      From::line(rows[i], t);
      for (int64_t j = 0; j < side; ++j) put(at_point(i * side + j, c), t[j]);
    }
  }
}

// Memory that lives as long as its thread: fresh pages cost more than the products of a layer.
class Scratch {
 public:
  float *floats(int64_t count) {
    if (count > size_) {
      memory_.reset(static_cast<float *>(std::aligned_alloc(64, (count * 4 + 63) / 64 * 64)));
      size_ = memory_ ? count : 0;
    }
    return memory_.get();
  }

 private:
  struct Free {
    void operator()(float *p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> memory_;
  int64_t size_ = 0;
};

}  // namespace
}  // namespace FA_ISA
