// The plain C interface of the CPU kernels. Pointers and sizes only: no Python, no
// torch, so one build serves every torch version. Called from kernels/_cpp.py, whose
// ctypes structures mirror these field by field.
#pragma once
#include <cstdint>

extern "C" {

enum FaDtype : int32_t { FA_NONE = 0, FA_F32 = 1, FA_BF16 = 2, FA_F16 = 3, FA_U8 = 4 };

// One step; see the docstrings of fastadv.kernels.pgd_step_ and apgd_step_.
// Every image tensor is dense, [n, c, hw] or, with channels_last, [n, hw, c].
struct FaStep {
  void *x;             // the state, overwritten: FA_F32 iterate, or FA_F16 perturbation
  float *x_prev;       // apgd: the iterate before, overwritten; otherwise null
  const void *x0;      // clean images, FA_U8 or FA_F32
  const void *grad;    // FA_F32, FA_BF16 or FA_F16
  void *z;             // next normalised input, or null
  const float *step;   // [n]
  const float *eps;    // [n]
  const float *mean;   // [c]
  const float *std;    // [c]
  int64_t *nonfinite;  // [1], added to, or null
  int64_t n, c, hw;
  float momentum;  // apgd
  int32_t x_dtype, x0_dtype, grad_dtype, z_dtype;
  int32_t channels_last, l2, threads;
};

// Random start around x0; see fastadv.kernels.ball_init.
struct FaInit {
  float *out;
  const void *x0;
  const float *eps;  // [n]
  uint64_t seed, offset;
  int64_t n, c, hw;
  int32_t x0_dtype, channels_last, l2, threads;
};

// (x - mean) / std; see fastadv.kernels.normalize.
struct FaNormalize {
  void *z;
  const void *x;
  const float *mean, *std;  // [c]
  int64_t n, c, hw;
  int32_t x_dtype, z_dtype, channels_last, threads;
};

// For benchmarks only: the memory traffic of a step without its arithmetic. Reads x, a and b,
// writes x and, unless null, z. All float, `size` elements.
struct FaTriad {
  float *x, *z;
  const float *a, *b;
  int64_t size;
  int32_t stream;  // write z past the caches
  int32_t threads;
};

// A 3x3 convolution of stride 1 and padding 1 in float32, [n, h, w, channels] dense:
//   out = act(conv(x where mask > 0, weight) + bias + residual)
// With `transposed`, the input gradient of that convolution: x is the gradient of its output,
// in_channels counts the channels of x, and weight is still that of the forward convolution.
struct FaConv3x3 {
  float *out;             // [n, h, w, out_channels]
  const float *x;         // [n, h, w, in_channels]
  const float *mask;      // like x, or null: all of x counts
  const float *weight;    // [O, 3, 3, I] dense (channels_last) of the forward convolution
  const float *bias;      // [out_channels], or null
  const float *residual;  // like out, or null
  int64_t n, h, w, in_channels, out_channels;
  int32_t transposed, relu, threads;
};

// The weight gradient of that convolution, summed over the images.
struct FaConv3x3Weight {
  float *weight;      // [O, 3, 3, I] dense (channels_last), written
  const float *x;     // [n, h, w, in_channels]
  const float *grad;  // [n, h, w, out_channels], of the output
  int64_t n, h, w, in_channels, out_channels;
  int32_t threads;
};

// Crops of 8-bit RGB images, resized to side x side by a triangle filter that widens when it
// shrinks (antialiased bilinear), flipped, then recoloured:
//   out = x * scale + gray(x) * gray_scale + mean(gray) * mean_scale + shift[channel]
// where x is the resized crop, rounded, and mean is over the crop. Boxes may reach beyond the
// image by less than its side: it is reflected there, without repeating the border.
struct FaCrops {
  uint8_t *out;           // [n, side, side, 3]
  const uint8_t *images;  // [m, h, w, 3]
  const int64_t *index;   // [n], which image
  const int32_t *boxes;   // [n, 5]: top, left, height, width, flip
  const float *colour;    // [n, 6]: scale, gray_scale, mean_scale, shift of R, G, B; or null
  int64_t n, h, w, side;
  int32_t threads;
};

// The version of this interface, the sizes of its structures, and a zero at the end. _cpp.py
// compares them with its own before it calls anything else. The version rises when a structure
// changes in meaning but not in size.
const int64_t *fa_abi();
int32_t fa_pgd_step(const FaStep *args);  // 0, or 1 for an unknown dtype
int32_t fa_apgd_step(const FaStep *args);
int32_t fa_ball_init(const FaInit *args);
int32_t fa_normalize(const FaNormalize *args);
int32_t fa_triad(const FaTriad *args);
int32_t fa_conv3x3(const FaConv3x3 *args);
int32_t fa_conv3x3_weight(const FaConv3x3Weight *args);
int32_t fa_crops(const FaCrops *args);
int64_t fa_last_level_cache();  // bytes
int32_t fa_has_f16();           // 1 if FA_F16 was built
const char *fa_isa();           // "avx512", "avx2" or "baseline"
}
