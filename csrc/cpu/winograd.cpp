// 3x3 convolutions by Winograd's F(4x4, 3x3): 36 multiplications where the sum of products
// takes 144. An attack spends nine tenths of its time in convolutions, most of them of this
// kind, and its weights do not change while it runs.
//
// out = A^T [ (G w G^T) . (B^T x B) ] A over tiles of 4x4 outputs, where "." is, for each of
// the 36 points, a matrix product over channels. The points 0, +-5/8, +-3/2, infinity lose less
// to rounding than 0, +-1, +-2, infinity (docs/numerics.md). All three transforms are vectors
// over channels, so channels_last needs no rearrangement.
//
// A chunk of tiles is transformed at once (shared by the threads, sized for the last-level
// cache). Then each thread takes panels of output channels: it transforms the panel's weights,
// which costs next to nothing beside the products and saves storing them fourfold, and goes
// through the tiles in blocks whose products stay in its own cache until they are transformed
// back. Sums have one fixed order: results do not depend on the number of threads.
#include "conv.h"

#include <omp.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "vectors.h"

namespace FA_ISA {
namespace {

constexpr int64_t kPoints = 36;
constexpr int64_t kBlock = 48;              // tiles whose products stay in L2
constexpr int64_t kBlockBytes = 448 << 10;  // transformed input of a thread's block
constexpr int64_t kChunkBytes = 12 << 20;   // transformed input shared through L3
constexpr int64_t kWeightBytes = 3 << 20;  // transformed weights shared through L3
constexpr int64_t kPanel = 2 * kLanes;      // output channels of a panel
constexpr int kRows = kLanes == 16 ? 12 : 6;  // rows of the register tile: 24 or 12 sums

constexpr float a1 = 0.625f, b1 = 1.5f;
constexpr float a2 = a1 * a1, b2 = b1 * b1, a3 = a2 * a1, b3 = b2 * b1;

inline vf at(const float *p) { return raw<vf>(p, kLanes); }
inline void put(float *p, vf v) { std::memcpy(p, &v, sizeof v); }

// B^T d for one line of six.
inline void transform_input(const vf d[6], vf t[6]) {
  t[0] = a2 * b2 * d[0] - (a2 + b2) * d[2] + d[4];
  t[5] = a2 * b2 * d[1] - (a2 + b2) * d[3] + d[5];
  const vf ea = d[4] - b2 * d[2], oa = a1 * (d[3] - b2 * d[1]);
  const vf eb = d[4] - a2 * d[2], ob = b1 * (d[3] - a2 * d[1]);
  t[1] = ea + oa, t[2] = ea - oa, t[3] = eb + ob, t[4] = eb - ob;
}

// G w for one line of three.
inline void transform_weight(const vf w[3], vf t[6]) {
  constexpr float na = 1 / (2 * a2 * (a2 - b2)), nb = 1 / (2 * b2 * (b2 - a2));
  t[0] = w[0] * (1 / (a2 * b2));
  const vf ea = (w[0] + a2 * w[2]) * na, oa = w[1] * (a1 * na);
  const vf eb = (w[0] + b2 * w[2]) * nb, ob = w[1] * (b1 * nb);
  t[1] = ea + oa, t[2] = ea - oa, t[3] = eb + ob, t[4] = eb - ob;
  t[5] = w[2];
}

// A^T m for one line of six.
inline void transform_output(const vf m[6], vf y[4]) {
  const vf sa = m[1] + m[2], da = m[1] - m[2], sb = m[3] + m[4], db = m[3] - m[4];
  y[0] = m[0] + sa + sb;
  y[1] = a1 * da + b1 * db;
  y[2] = a2 * sa + b2 * sb;
  y[3] = a3 * da + b3 * db + m[5];
}

// Which 4x4 of which image a tile is.
struct Tiles {
  int64_t h, w, rows, columns, count;
  explicit Tiles(const FaConv3x3 &p)
      : h(p.h), w(p.w), rows((h + 3) / 4), columns((w + 3) / 4), count(p.n * rows * columns) {}
  void locate(int64_t tile, int64_t &image, int64_t &y, int64_t &x) const {
    x = tile % columns * 4;
    y = tile / columns % rows * 4;
    image = tile / columns / rows;
  }
};

// The transformed tile `index` of a block of `size` goes to v[point][index][channel].
void input_tile(const FaConv3x3 &p, const Tiles &tiles, int64_t tile, float *v, int64_t size) {
  int64_t image, y, x;
  tiles.locate(tile, image, y, x);
  const int64_t channels = p.in_channels;
  const int64_t top = std::max<int64_t>(1 - y, 0), bottom = std::min<int64_t>(p.h - y + 1, 6);
  const int64_t left = std::max<int64_t>(1 - x, 0), right = std::min<int64_t>(p.w - x + 1, 6);
  const int64_t origin = ((image * p.h + y - 1) * p.w + x - 1) * channels;
  for (int64_t c = 0; c < channels; c += kLanes) {
    vf rows[6][6];  // columns transformed: rows[i][j] is row i of B^T d, column j
    for (int64_t j = 0; j < 6; ++j) {
      vf d[6]{}, t[6];
      if (j >= left && j < right)
        for (int64_t i = top; i < bottom; ++i) {
          const int64_t k = origin + (i * p.w + j) * channels + c;
          d[i] = at(p.x + k);
          if (p.mask) d[i] = at(p.mask + k) > 0.0f ? d[i] : vf{};
        }
      transform_input(d, t);
      for (int64_t i = 0; i < 6; ++i) rows[i][j] = t[i];
    }
    for (int64_t i = 0; i < 6; ++i) {
      vf t[6];
      transform_input(rows[i], t);
      for (int64_t j = 0; j < 6; ++j) put(v + (i * 6 + j) * size * channels + c, t[j]);
    }
  }
}

// Rows [begin, end) of the panel of output channels from `first`: u[point][k][kPanel].
void weight_panel(const FaConv3x3 &p, int64_t first, int64_t begin, int64_t end, float *u) {
  const int64_t depth = p.in_channels, width = std::min(kPanel, p.out_channels - first);
  // Forward: weight[first + j][tap][k]; transposed: weight[k][8 - tap][first + j].
  const int64_t of_k = p.transposed ? 9 * p.out_channels : 1;
  const int64_t of_j = p.transposed ? 1 : 9 * depth;
  const int64_t of_tap = p.transposed ? p.out_channels : depth;
  for (int64_t k0 = begin; k0 < end; k0 += kLanes) {
    // kLanes values of k at once: forward, they are one line of memory, to be transposed.
    float taps[9][kLanes][kPanel] = {};
    for (int64_t tap = 0; tap < 9; ++tap) {
      const int64_t from = p.transposed ? 8 - tap : tap;
      const float *const w = p.weight + k0 * of_k + from * of_tap + first * of_j;
      if (p.transposed)
        for (int64_t k = 0; k < kLanes; ++k)
          for (int64_t j = 0; j < width; j += kLanes) put(&taps[tap][k][j], at(w + k * of_k + j));
      else
        for (int64_t j = 0; j < width; ++j)
          for (int64_t k = 0; k < kLanes; ++k) taps[tap][k][j] = w[j * of_j + k];
    }
    for (int64_t k = 0; k < kLanes; ++k)
      for (int64_t j = 0; j < kPanel; j += kLanes) {
        vf rows[6][3];
        for (int64_t column = 0; column < 3; ++column) {
          const vf w[3] = {at(&taps[column][k][j]), at(&taps[3 + column][k][j]),
                           at(&taps[6 + column][k][j])};
          vf t[6];
          transform_weight(w, t);
          for (int64_t i = 0; i < 6; ++i) rows[i][column] = t[i];
        }
        for (int64_t i = 0; i < 6; ++i) {
          vf t[6];
          transform_weight(rows[i], t);
          for (int64_t l = 0; l < 6; ++l)
            put(u + ((i * 6 + l) * depth + k0 + k) * kPanel + j, t[l]);
        }
      }
  }
}

// m[r][0..kPanel) = sum over k of v[r][k] * u[k][0..kPanel) for `Rows` rows.
template <int Rows>
inline void product(const float *v, const float *u, int64_t depth, float *m) {
  vf sums[Rows][2] = {};
  // One pointer for three rows: twelve offsets would not fit the registers.
  const float *rows[(Rows + 2) / 3];
#pragma GCC unroll 4
  for (int r = 0; r < Rows; r += 3) rows[r / 3] = v + r * depth;
  for (int64_t k = 0; k < depth; ++k) {
    const vf u0 = at(u + k * kPanel), u1 = at(u + k * kPanel + kLanes);
#pragma GCC unroll 12
    for (int r = 0; r < Rows; ++r) {
      const vf s = splat(rows[r / 3][r % 3 * depth + k]);
      sums[r][0] += s * u0;
      sums[r][1] += s * u1;
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < Rows; ++r) {
    put(m + r * kPanel, sums[r][0]);
    put(m + r * kPanel + kLanes, sums[r][1]);
  }
}

void products(const float *v, const float *u, int64_t rows, int64_t depth, float *m) {
  int64_t r = 0;
  for (; r + kRows <= rows; r += kRows) product<kRows>(v + r * depth, u, depth, m + r * kPanel);
  for (; r + 3 <= rows; r += 3) product<3>(v + r * depth, u, depth, m + r * kPanel);
  for (; r < rows; ++r) product<1>(v + r * depth, u, depth, m + r * kPanel);
}

// One tile of the panel: m[point][block tile][kPanel] back to pixels, then the epilogue.
void output_tile(const FaConv3x3 &p, const Tiles &tiles, int64_t tile, const float *m,
                 int64_t size, int64_t first, int64_t width) {
  int64_t image, y, x;
  tiles.locate(tile, image, y, x);
  const int64_t bottom = std::min<int64_t>(p.h - y, 4), right = std::min<int64_t>(p.w - x, 4);
  const int64_t origin = ((image * p.h + y) * p.w + x) * p.out_channels + first;
  for (int64_t j = 0; j < width; j += kLanes) {
    vf rows[4][6];
    for (int64_t column = 0; column < 6; ++column) {
      vf line[6], t[4];
      for (int64_t i = 0; i < 6; ++i) line[i] = at(m + (i * 6 + column) * size * kPanel + j);
      transform_output(line, t);
      for (int64_t i = 0; i < 4; ++i) rows[i][column] = t[i];
    }
    const vf bias = p.bias ? at(p.bias + first + j) : vf{};
    for (int64_t i = 0; i < bottom; ++i) {
      vf t[4];
      transform_output(rows[i], t);
      for (int64_t l = 0; l < right; ++l) {
        const int64_t k = origin + (i * p.w + l) * p.out_channels + j;
        vf v = t[l] + bias;
        if (p.residual) v += at(p.residual + k);
        // Not v > 0: a NaN must stay one.
        if (p.relu) v = v < 0.0f ? vf{} : v;
        put(p.out + k, v);
      }
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

// A block of transformed tiles v[point][size][depth] times a panel, back to pixels.
void block_panel(const FaConv3x3 &p, const Tiles &tiles, int64_t tile, int64_t size,
                 const float *v, const float *u, float *m, int64_t first) {
  const int64_t depth = p.in_channels;
  for (int64_t point = 0; point < kPoints; ++point)
    products(v + point * size * depth, u + point * depth * kPanel, size, depth,
             m + point * size * kPanel);
  for (int64_t t = 0; t < size; ++t)
    output_tile(p, tiles, tile + t, m + t * kPanel, size, first,
                std::min(kPanel, p.out_channels - first));
}

// Few channels, many tiles: all panels' weights once, then each thread takes blocks of tiles.
bool by_tiles(const FaConv3x3 &p, const Tiles &tiles, int64_t panels, int64_t block, float *u) {
  const int64_t depth = p.in_channels, panel_size = kPoints * depth * kPanel;
  bool failed = false;
#pragma omp parallel num_threads(p.threads)
  {
    static thread_local Scratch own;
    float *const v = own.floats(kPoints * block * (depth + kPanel));
    if (!v) {
#pragma omp atomic write
      failed = true;
    }
    const int64_t pieces = depth / kLanes;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels * pieces; ++i) {
      const int64_t panel = i / pieces, k = i % pieces * kLanes;
      weight_panel(p, panel * kPanel, k, k + kLanes, u + panel * panel_size);
    }
    if (v) {
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles.count; tile += block) {
        const int64_t size = std::min(block, tiles.count - tile);
        for (int64_t t = 0; t < size; ++t) input_tile(p, tiles, tile + t, v + t * depth, size);
        for (int64_t panel = 0; panel < panels; ++panel)
          block_panel(p, tiles, tile, size, v, u + panel * panel_size,
                      v + kPoints * block * depth, panel * kPanel);
      }
    }
  }
  return !failed;
}

// Many channels, few tiles: a chunk of tiles is transformed for all threads, then each takes
// panels and transforms their weights for itself.
bool by_panels(const FaConv3x3 &p, const Tiles &tiles, int64_t panels, int64_t chunk, float *v) {
  const int64_t depth = p.in_channels;
  bool failed = false;
#pragma omp parallel num_threads(p.threads)
  {
    static thread_local Scratch own;
    float *const u = own.floats(kPoints * kPanel * (depth + kBlock));
    if (!u) {
#pragma omp atomic write
      failed = true;
    }
#pragma omp barrier
    for (int64_t begin = 0; begin < tiles.count && !failed; begin += chunk) {
      const int64_t count = std::min(chunk, tiles.count - begin);
#pragma omp for schedule(static)
      for (int64_t t = 0; t < count; ++t) {
        const int64_t b = t / kBlock * kBlock, size = std::min(kBlock, count - b);
        input_tile(p, tiles, begin + t, v + b * kPoints * depth + (t - b) * depth, size);
      }
      const int64_t blocks = (count + kBlock - 1) / kBlock;
      const int64_t parts =
          std::min<int64_t>(blocks, (omp_get_num_threads() + panels - 1) / panels);
#pragma omp for schedule(dynamic)
      for (int64_t item = 0; item < panels * parts; ++item) {
        const int64_t first = item / parts * kPanel, part = item % parts;
        weight_panel(p, first, 0, depth, u);
        for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b)
          block_panel(p, tiles, begin + b * kBlock, std::min(kBlock, count - b * kBlock),
                      v + b * kBlock * kPoints * depth, u, u + kPoints * kPanel * depth, first);
      }
    }
  }
  return !failed;
}

}  // namespace

int32_t conv3x3(const FaConv3x3 &p) {
  if (p.in_channels % kLanes || p.out_channels % kLanes) return 1;
  const Tiles tiles(p);
  const int64_t depth = p.in_channels;
  const int64_t panels = (p.out_channels + kPanel - 1) / kPanel;
  static thread_local Scratch shared;
  // The largest block of whole register tiles whose transform stays in a share of L2.
  const int64_t block = kBlockBytes / (kPoints * depth * 4) / kRows * kRows;
  const int64_t weights = panels * kPoints * depth * kPanel;
  if (block > 0 && weights * 4 <= kWeightBytes) {
    float *const u = shared.floats(weights);
    return u && by_tiles(p, tiles, panels, std::min(block, kBlock), u) ? 0 : 2;
  }
  int64_t chunk = std::max<int64_t>(1, kChunkBytes / (kPoints * depth * 4) / kBlock) * kBlock;
  chunk = std::min(chunk, (tiles.count + kBlock - 1) / kBlock * kBlock);
  float *const v = shared.floats(chunk * kPoints * depth);
  return v && by_panels(p, tiles, panels, chunk, v) ? 0 : 2;
}

}  // namespace FA_ISA
