// Crop, resize, flip and recolour in one pass over each image: what comes between is a row or
// two in the first-level cache. Rows are summed over height first, which needs no rearrangement
// of the channels, then over width with one vector of four floats per pixel and tap.
//
// An image belongs to one thread and its sums have one order, so results do not depend on the
// number of threads.
#include "interface.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "vectors.h"

namespace FA_ISA {
namespace {

typedef float f4 __attribute__((vector_size(16)));

constexpr float kGray[3] = {0.299f, 0.587f, 0.114f};  // ITU-R BT.601, as Pillow and torchvision

inline f4 at4(const float *p) {
  f4 v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <typename N> inline vf load_bytes(const uint8_t *p, N n) {
  return __builtin_convertvector(__builtin_convertvector(raw<vb>(p, n), vi), vf);
}

// The weights of a triangle filter along one axis: out[i] = sum of weight[i][t] * in[first[i] + t].
struct Taps {
  std::vector<int32_t> first, count;
  std::vector<float> weight;
  int64_t most = 0;

  void set(int64_t from, int64_t to, bool flip) {
    const double scale = static_cast<double>(from) / to, support = std::max(scale, 1.0);
    most = 2 * static_cast<int64_t>(std::ceil(support)) + 1;
    first.resize(to), count.resize(to), weight.assign(to * most, 0.0f);
    for (int64_t i = 0; i < to; ++i) {
      const double centre = (i + 0.5) * scale;
      int64_t low = std::max<int64_t>(0, static_cast<int64_t>(centre - support + 0.5));
      int64_t high = std::min<int64_t>(from, static_cast<int64_t>(centre + support + 0.5));
      const auto tap = [&](int64_t p) {
        return std::max(0.0, 1.0 - std::abs(p + 0.5 - centre) / support);
      };
      while (high - low > 1 && tap(low) == 0) ++low;
      while (high - low > 1 && tap(high - 1) == 0) --high;
      double total = 0;
      for (int64_t p = low; p < high; ++p) total += tap(p);
      const int64_t o = flip ? to - 1 - i : i;
      first[o] = static_cast<int32_t>(low), count[o] = static_cast<int32_t>(high - low);
      for (int64_t p = low; p < high; ++p)
        weight[o * most + p - low] = static_cast<float>(tap(p) / total);
    }
  }
};

inline int64_t reflected(int64_t p, int64_t size) {
  if (p < 0) p = -p;
  return p < size ? p : 2 * (size - 1) - p;
}

// The buffers of one thread.
struct Scratch {
  Taps down, across;
  std::vector<const uint8_t *> rows;
  std::vector<uint8_t> gathered;  // rows of a box that reaches beyond the sides of the image
  std::vector<float> sums, line;
};

// Rounds floats to bytes; they lie in [0, 255] but for what `limit` clamps.
template <bool limit> void put_bytes(uint8_t *out, const float *line, int64_t size) {
  const auto put = [&](int64_t i, auto n) {
    vf v = raw<vf>(line + i, n);
    if (limit) v = clamp(v, vf{}, splat(255.0f));
    const vb bytes = __builtin_convertvector(__builtin_convertvector(v + 0.5f, vi), vb);
    std::memcpy(out + i, &bytes, static_cast<size_t>(n));
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) put(i, std::integral_constant<int64_t, kLanes>{});
  if (i < size) put(i, size - i);
}

// Mean of the gray values of `pixels` RGB pixels.
float gray_mean(const uint8_t *p, int64_t pixels) {
  vf weights[3], total[3] = {};
  for (int64_t k = 0; k < 3; ++k)
    for (int64_t l = 0; l < kLanes; ++l) weights[k][l] = kGray[(k * kLanes + l) % 3];
  const int64_t size = 3 * pixels;
  double sums = 0;
  int64_t i = 0;
  for (; i + 3 * kLanes <= size; i += 3 * kLanes)
    for (int64_t k = 0; k < 3; ++k)
      total[k] +=
          weights[k] * load_bytes(p + i + k * kLanes, std::integral_constant<int64_t, kLanes>{});
  for (; i < size; ++i) sums += kGray[i % 3] * p[i];
  for (const vf &v : total) sums += sum(v);
  return static_cast<float>(sums / pixels);
}

void recolour(uint8_t *image, const float *c, int64_t side, std::vector<float> &line) {
  const float mean = c[2] * gray_mean(image, side * side);
  const f4 shift = {c[3] + mean, c[4] + mean, c[5] + mean, 0};
  const auto column = [&](int channel) {  // what one channel adds to the three
    const float gray = c[1] * kGray[channel];
    const f4 own = {c[0] * (channel == 0), c[0] * (channel == 1), c[0] * (channel == 2), 0};
    return own + gray;
  };
  const f4 red = column(0), green = column(1), blue = column(2);
  for (int64_t y = 0; y < side; ++y) {
    uint8_t *row = image + y * side * 3;
    for (int64_t x = 0; x < side; ++x) {
      const float r = row[3 * x], g = row[3 * x + 1], b = row[3 * x + 2];
      const f4 v = red * r + green * g + blue * b + shift;
      std::memcpy(&line[3 * x], &v, sizeof v);
    }
    put_bytes<true>(row, line.data(), 3 * side);
  }
}

void crop(const FaCrops &a, int64_t n, Scratch &s) {
  const int32_t *box = a.boxes + 5 * n;
  const int64_t top = box[0], left = box[1], height = box[2], width = box[3];
  const bool flip = box[4] != 0;
  const int64_t side = a.side, stride = 3 * a.w;
  const uint8_t *image = a.images + a.index[n] * a.h * stride;
  uint8_t *out = a.out + n * side * side * 3;
  const bool inside = left >= 0 && left + width <= a.w;
  const bool same = width == side && height == side;

  s.down.set(height, side, false), s.across.set(width, side, flip);
  s.sums.resize(3 * width + 4), s.line.resize(3 * side + 4);
  s.gathered.resize(inside ? 0 : 3 * width * s.down.most);
  s.rows.resize(s.down.most);
  for (int64_t y = 0; y < side; ++y) {
    const int64_t taps = s.down.count[y];
    for (int64_t t = 0; t < taps; ++t) {
      const uint8_t *row = image + reflected(top + s.down.first[y] + t, a.h) * stride;
      if (inside) {
        s.rows[t] = row + 3 * left;
      } else {
        uint8_t *copy = s.gathered.data() + t * 3 * width;
        for (int64_t x = 0; x < width; ++x)
          std::memcpy(copy + 3 * x, row + 3 * reflected(left + x, a.w), 3);
        s.rows[t] = copy;
      }
    }
    uint8_t *to = out + y * side * 3;
    if (same) {  // nothing to resize
      if (!flip) {
        std::memcpy(to, s.rows[0], 3 * side);
      } else {
        for (int64_t x = 0; x < side; ++x)
          std::memcpy(to + 3 * x, s.rows[0] + 3 * (side - 1 - x), 3);
      }
      continue;
    }
    const float *weight = &s.down.weight[y * s.down.most];
    const auto sum_rows = [&](int64_t i, auto lanes) {
      vf v = weight[0] * load_bytes(s.rows[0] + i, lanes);
      for (int64_t t = 1; t < taps; ++t) v += weight[t] * load_bytes(s.rows[t] + i, lanes);
      std::memcpy(&s.sums[i], &v, sizeof(float) * lanes);
    };
    int64_t i = 0;
    for (; i + kLanes <= 3 * width; i += kLanes)
      sum_rows(i, std::integral_constant<int64_t, kLanes>{});
    if (i < 3 * width) sum_rows(i, 3 * width - i);
    for (int64_t x = 0; x < side; ++x) {
      const float *from = &s.sums[3 * s.across.first[x]];
      const float *w = &s.across.weight[x * s.across.most];
      f4 v = w[0] * at4(from);
      for (int64_t t = 1; t < s.across.count[x]; ++t) v += w[t] * at4(from + 3 * t);
      std::memcpy(&s.line[3 * x], &v, sizeof v);
    }
    put_bytes<false>(to, s.line.data(), 3 * side);
  }
  if (a.colour) recolour(out, a.colour + 6 * n, side, s.line);
}

}  // namespace

int32_t crops(const FaCrops &a) {
#pragma omp parallel num_threads(a.threads) if (a.threads > 1)
  {
    Scratch scratch;
#pragma omp for schedule(dynamic)
    for (int64_t n = 0; n < a.n; ++n) crop(a, n, scratch);
  }
  return 0;
}

}  // namespace FA_ISA
