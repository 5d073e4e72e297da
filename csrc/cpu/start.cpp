// The start of an attack: a random point of the ball, and the first normalised input. Compiled
// once per instruction set (FA_ISA names the namespace).
#include "tiles.h"

namespace FA_ISA {
namespace {

// Fills out with the unscaled random direction of sample n (uniform in [-1, 1), or normal)
// and returns its squared length.
double random_row(const FaInit &a, int64_t n, float *out) {
  const uint64_t sample = a.offset + static_cast<uint64_t>(n);
  const int64_t pixel_stride = a.channels_last ? a.c : 1;
  const int64_t channel_stride = a.channels_last ? 1 : a.hw;
  double sum = 0;
  for (int64_t q = 0; q * 4 < a.c; ++q) {
    const int64_t lanes = std::min<int64_t>(4, a.c - q * 4);
    for (int64_t p = 0; p < a.hw; ++p) {
      const Words w = philox(static_cast<uint32_t>(p), static_cast<uint32_t>(q), sample, a.seed);
      float v[4];
      if (!a.l2) {
        for (int l = 0; l < 4; ++l) v[l] = 2.0f * uniform(w.v[l]) - 1.0f;
      } else {
        for (int l = 0; l < 4; l += 2) {
          const float r = std::sqrt(-2.0f * std::log(uniform(w.v[l]) + kUnit));
          const float t = 6.283185307179586f * uniform(w.v[l + 1]);
          v[l] = r * std::cos(t), v[l + 1] = r * std::sin(t);
        }
      }
      for (int64_t l = 0; l < lanes; ++l) {
        out[p * pixel_stride + (q * 4 + l) * channel_stride] = v[l];
        sum += static_cast<double>(v[l]) * v[l];
      }
    }
  }
  return sum;
}

template <typename C> void init_rows(const FaInit &a) {
  const int64_t row = a.c * a.hw;
  const C *x0 = static_cast<const C *>(a.x0);
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t n = 0; n < a.n; ++n) {
    float *out = a.out + n * row;
    const double squared = random_row(a, n, out);
    double scale = a.eps[n];
    if (a.l2) {
      const Words w = philox(0xFFFFFFFFu, 0, a.offset + static_cast<uint64_t>(n), a.seed);
      const double u = static_cast<double>(uniform(w.v[0])) + kUnit;
      scale *= std::pow(u, 1.0 / static_cast<double>(row)) / std::max(std::sqrt(squared), 1e-30);
    }
    for (int64_t i = 0; i < row; ++i) {
      const double v = to_pixel(x0[n * row + i]) + scale * out[i];
      out[i] = static_cast<float>(std::min(std::max(v, 0.0), 1.0));
    }
  }
}

template <typename C> void normalize_rows(const FaNormalize &a) {
  const Tiling t(a.mean, a.std, a.c, a.hw, a.channels_last != 0);
  const C *x = static_cast<const C *>(a.x);
#pragma omp parallel for schedule(static) num_threads(a.threads)
  for (int64_t k = 0; k < a.n * t.tiles; ++k) {
    const int64_t begin = k / t.tiles * t.row + t.begin(k % t.tiles);
    const Pattern &p = t.pattern(k % t.tiles);
    // z is new memory: the kernel has just cleared its pages, which are in cache.
    const Output out(a.z, a.z_dtype, begin, false);
    for_tile(t.size(k % t.tiles), p.period, [&](int64_t i, int64_t j, auto n) {
      const vf v = load_pixels(x + begin + i, n);
      out.put(i, v, load(p.mean.data() + j, kLanes), load(p.inv_std.data() + j, kLanes), n);
    });
  }
}

}  // namespace

int32_t ball_init(const FaInit &a) {
  return with_clean(a.x0_dtype, [&](auto c) { init_rows<decltype(c)>(a); }) ? 0 : 1;
}

int32_t normalize(const FaNormalize &a) {
  if (!with_float(a.z_dtype, [](auto) {})) return 1;
  return with_clean(a.x_dtype, [&](auto c) { normalize_rows<decltype(c)>(a); }) ? 0 : 1;
}

}  // namespace FA_ISA
