// 3x3 convolutions by Winograd's F(4x4, 3x3): 36 multiplications where the sum of products
// takes 144. An attack spends nine tenths of its time in convolutions, most of them of this
// kind, and its weights do not change while it runs.
//
// out = A^T [ (G w G^T) . (B^T x B) ] A over tiles of 4x4 outputs, where "." is, for each of
// the 36 points, a matrix product over channels. The points 0, +-5/8, +-3/2, infinity lose less
// to rounding than 0, +-1, +-2, infinity (docs/numerics.md). All three transforms are vectors
// over channels, so channels_last needs no rearrangement.
//
// A map of 2x2 pixels (the last stage of a ResNet at 64 px) is one tile without a border, whose
// nine taps times four pixels take 9 products: see Whole.
//
// A chunk of tiles is transformed at once (shared by the threads, sized for the last-level
// cache). Then each thread takes panels of output channels: it transforms the panel's weights,
// which costs next to nothing beside the products and saves storing them fourfold, and goes
// through the tiles in blocks whose products stay in its own cache until they are transformed
// back. Sums have one fixed order: results do not depend on the number of threads.
#include "winograd.h"

#include <omp.h>

namespace FA_ISA {
namespace {

constexpr int64_t kBlockBytes = 448 << 10;    // transformed input of a thread's block
constexpr int64_t kWeightBytes = 3 << 20;     // transformed weights shared through L3
constexpr int kRows = kLanes == 16 ? 12 : 6;  // rows of the register tile: 24 or 12 sums

// The transformed tile `index` of a block of `size` goes to v[point][index][channel].
template <typename T>
void input_tile(const FaConv3x3 &p, const Tiles<T> &tiles, int64_t tile, float *v, int64_t size) {
  const int64_t channels = p.in_channels;
  transform_tile<T, Input<T>>(
      {p.x, p.mask, p.n, p.h, p.w, channels}, tiles, tile,
      [=](int64_t point, int64_t c) { return v + point * size * channels + c; });
}

// Rows [begin, end) of the panel of output channels from `first`: u[point][k][kPanel].
template <typename T>
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
        vf rows[T::kSide][3];
        for (int64_t column = 0; column < 3; ++column) {
          const vf w[3] = {at(&taps[column][k][j]), at(&taps[3 + column][k][j]),
                           at(&taps[6 + column][k][j])};
          vf t[T::kSide];
          T::weight(w, t);
          for (int64_t i = 0; i < T::kSide; ++i) rows[i][column] = t[i];
        }
        for (int64_t i = 0; i < T::kSide; ++i) {
          vf t[T::kSide];
          T::weight(rows[i], t);
          for (int64_t l = 0; l < T::kSide; ++l)
            put(u + ((i * T::kSide + l) * depth + k0 + k) * kPanel + j, t[l]);
        }
      }
  }
}

// m[r][0..kPanel) = sum over k of v[r][k] * u[k][0..kPanel) for `Rows` rows.
template <int Rows> inline void product(const float *v, const float *u, int64_t depth, float *m) {
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
template <typename T>
void output_tile(const FaConv3x3 &p, const Tiles<T> &tiles, int64_t tile, const float *m,
                 int64_t size, int64_t first, int64_t width) {
  int64_t image, y, x;
  tiles.locate(tile, image, y, x);
  const int64_t bottom = std::min(p.h - y, T::kOut), right = std::min(p.w - x, T::kOut);
  const int64_t origin = ((image * p.h + y) * p.w + x) * p.out_channels + first;
  for (int64_t j = 0; j < width; j += kLanes) {
    constexpr int64_t side = T::kSide;
    vf rows[T::kOut][side];
    for (int64_t column = 0; column < side; ++column) {
      vf line[side], t[T::kOut];
      for (int64_t i = 0; i < side; ++i) line[i] = at(m + (i * side + column) * size * kPanel + j);
      T::output(line, t);
      for (int64_t i = 0; i < T::kOut; ++i) rows[i][column] = t[i];
    }
    const vf bias = p.bias ? at(p.bias + first + j) : vf{};
    for (int64_t i = 0; i < bottom; ++i) {
      vf t[T::kOut];
      T::output(rows[i], t);
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

// A block of transformed tiles v[point][size][depth] times a panel, back to pixels.
template <typename T>
void block_panel(const FaConv3x3 &p, const Tiles<T> &tiles, int64_t tile, int64_t size,
                 const float *v, const float *u, float *m, int64_t first) {
  const int64_t depth = p.in_channels;
  for (int64_t point = 0; point < kPoints<T>; ++point)
    products(v + point * size * depth, u + point * depth * kPanel, size, depth,
             m + point * size * kPanel);
  for (int64_t t = 0; t < size; ++t)
    output_tile(p, tiles, tile + t, m + t * kPanel, size, first,
                std::min(kPanel, p.out_channels - first));
}

// Few channels, many tiles: all panels' weights once, then each thread takes blocks of tiles.
template <typename T>
bool by_tiles(const FaConv3x3 &p, const Tiles<T> &tiles, int64_t panels, int64_t block, float *u) {
  const int64_t depth = p.in_channels, panel_size = kPoints<T> * depth * kPanel;
  bool failed = false;
#pragma omp parallel num_threads(p.threads)
  {
    static thread_local Scratch own;
    float *const v = own.floats(kPoints<T> * block * (depth + kPanel));
    if (!v) {
#pragma omp atomic write
      failed = true;
    }
    const int64_t pieces = depth / kLanes;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < panels * pieces; ++i) {
      const int64_t panel = i / pieces, k = i % pieces * kLanes;
      weight_panel<T>(p, panel * kPanel, k, k + kLanes, u + panel * panel_size);
    }
    if (v) {
#pragma omp for schedule(dynamic)
      for (int64_t tile = 0; tile < tiles.count; tile += block) {
        const int64_t size = std::min(block, tiles.count - tile);
        for (int64_t t = 0; t < size; ++t) input_tile(p, tiles, tile + t, v + t * depth, size);
        for (int64_t panel = 0; panel < panels; ++panel)
          block_panel(p, tiles, tile, size, v, u + panel * panel_size,
                      v + kPoints<T> * block * depth, panel * kPanel);
      }
    }
  }
  return !failed;
}

// Many channels, few tiles: a chunk of tiles is transformed for all threads, then each takes
// panels and transforms their weights for itself.
template <typename T>
bool by_panels(const FaConv3x3 &p, const Tiles<T> &tiles, int64_t panels, int64_t chunk, float *v) {
  const int64_t depth = p.in_channels;
  bool failed = false;
#pragma omp parallel num_threads(p.threads)
  {
    static thread_local Scratch own;
    float *const u = own.floats(kPoints<T> * kPanel * (depth + kBlock));
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
        input_tile(p, tiles, begin + t, v + b * kPoints<T> * depth + (t - b) * depth, size);
      }
      const int64_t blocks = (count + kBlock - 1) / kBlock;
      const int64_t parts =
          std::min<int64_t>(blocks, (omp_get_num_threads() + panels - 1) / panels);
#pragma omp for schedule(dynamic)
      for (int64_t item = 0; item < panels * parts; ++item) {
        const int64_t first = item / parts * kPanel, part = item % parts;
        weight_panel<T>(p, first, 0, depth, u);
        for (int64_t b = blocks * part / parts; b < blocks * (part + 1) / parts; ++b)
          block_panel(p, tiles, begin + b * kBlock, std::min(kBlock, count - b * kBlock),
                      v + b * kBlock * kPoints<T> * depth, u, u + kPoints<T> * kPanel * depth,
                      first);
      }
    }
  }
  return !failed;
}

template <typename T> int32_t conv3x3_by(const FaConv3x3 &p) {
  const Tiles<T> tiles(p.n, p.h, p.w);
  const int64_t depth = p.in_channels;
  const int64_t panels = (p.out_channels + kPanel - 1) / kPanel;
  static thread_local Scratch shared;
  // The largest block of whole register tiles whose transform stays in a share of L2.
  const int64_t block = kBlockBytes / (kPoints<T> * depth * 4) / kRows * kRows;
  const int64_t weights = panels * kPoints<T> * depth * kPanel;
  if (block > 0 && weights * 4 <= kWeightBytes) {
    float *const u = shared.floats(weights);
    return u && by_tiles(p, tiles, panels, std::min(block, kBlock), u) ? 0 : 2;
  }
  int64_t chunk = std::max<int64_t>(1, kChunkBytes / (kPoints<T> * depth * 4) / kBlock) * kBlock;
  chunk = std::min(chunk, (tiles.count + kBlock - 1) / kBlock * kBlock);
  float *const v = shared.floats(chunk * kPoints<T> * depth);
  return v && by_panels(p, tiles, panels, chunk, v) ? 0 : 2;
}

}  // namespace

int32_t conv3x3(const FaConv3x3 &p) {
  if (p.in_channels % kLanes || p.out_channels % kLanes) return 1;
  return p.h <= 2 && p.w <= 2 ? conv3x3_by<Whole>(p) : conv3x3_by<Tiled>(p);
}

}  // namespace FA_ISA
