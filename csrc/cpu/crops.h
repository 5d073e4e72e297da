// The plain C interface of the crops of augmentation; see crops.cpp.
#pragma once
#include <cstdint>

extern "C" {

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

int32_t fa_crops(const FaCrops *args);
}
