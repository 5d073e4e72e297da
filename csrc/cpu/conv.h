// The plain C interface of the 3x3 convolution and its gradients; see winograd.cpp.
#pragma once
#include <cstdint>

extern "C" {

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

int32_t fa_conv3x3(const FaConv3x3 *args);

// The weight gradient of that convolution, summed over the images.
struct FaConv3x3Weight {
  float *weight;      // [O, 3, 3, I] dense (channels_last), written
  const float *x;     // [n, h, w, in_channels]
  const float *grad;  // [n, h, w, out_channels], of the output
  int64_t n, h, w, in_channels, out_channels;
  int32_t threads;
};

int32_t fa_conv3x3_weight(const FaConv3x3Weight *args);
}
