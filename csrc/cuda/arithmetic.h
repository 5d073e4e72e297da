// What the CUDA kernels compute, element by element, and how they share out a sample. No CUDA in
// here: g++ compiles it too.
#pragma once
#include <cfloat>
#include <cmath>
#include <cstdint>

#include "../cpu/numbers.h"

namespace FA_ISA {

constexpr double kTiny = 1e-30;  // as TINY in kernels/reference.py

FA_HD inline float clip(float v, float low, float high) { return fminf(fmaxf(v, low), high); }

// u / 255 correctly rounded, by one multiplication and one fused one: the first product is exact
// (8 + 9 bits), so the sum rounds once. A division would take a subroutine.
FA_HD inline float pixel_of_byte(float u) {
  constexpr double high = 0x1p-8 + 0x1p-16;
  return fmaf(u, static_cast<float>(1.0 / 255 - high), u * static_cast<float>(high));
}

// The gradient in pixel units; an element that is not finite moves nothing and is counted.
FA_HD inline float ascent(float grad, float inv_std, int &bad) {
  const float gx = grad * inv_std;
  const bool finite = fabsf(gx) <= FLT_MAX;
  bad += finite ? 0 : 1;
  return finite ? gx : 0.0f;
}

FA_HD inline float signed_step(float gx, float step) {
  return gx > 0 ? step : gx < 0 ? -step : 0.0f;
}

// The float16 nearest to v that is nowhere larger in magnitude, as a float; |v| <= 1.
FA_HD inline float half_toward_zero(float v) {
  if (fabsf(v) < 0x1p-14f) return truncf(v * 0x1p24f) * 0x1p-24f;  // float16 denormals
  uint32_t bits;
  memcpy(&bits, &v, 4);
  bits &= 0xFFFFE000u;
  memcpy(&v, &bits, 4);
  return v;
}

// What a step leaves of one element: the state to store and the image it stands for.
struct Settled { float state, image; };

// The two kinds of state: the iterate in float32, or the perturbation in float16.
template <bool kDelta> struct State {
  FA_HD static float perturbation(float x, float clean) { return kDelta ? x : x - clean; }
  FA_HD static Settled settle(float d, float clean) {
    if (!kDelta) {
      const float image = clip(clean + d, 0.0f, 1.0f);
      return {image, image};
    }
    const float delta = half_toward_zero(clip(d, -clean, 1.0f - clean));
    return {delta, clip(clean + delta, 0.0f, 1.0f)};
  }
};

// The sums that decide an L2 step.
struct Sums {
  double gg = 0, dg = 0, dd = 0;

  FA_HD void add(float gx, float d) {
    const double g = gx, e = d;
    gg += g * g, dg += e * g, dd += e * e;
  }
};

// d <- shrink * (d + scale * gx)
struct Move {
  float scale, shrink;

  FA_HD float apply(float d, float gx) const { return (d + scale * gx) * shrink; }
};

// |d + scale * gx| follows from the three sums, so the step needs no second reduction.
FA_HD inline Move plan_move(const Sums &s, float step, float eps) {
  const double scale = step / (sqrt(s.gg) + kTiny);
  const double square = s.dd + 2 * scale * s.dg + scale * scale * s.gg;
  const double length = sqrt(square > 0 ? square : 0.0);
  return {static_cast<float>(scale), length > eps ? static_cast<float>(eps / length) : 1.0f};
}

// APGD: the perturbation between the projected step `ahead` and the momentum, before it is
// projected again.
FA_HD inline float with_momentum(float d, float ahead, float clean, float x_prev, float momentum) {
  const float u = clip(clean + ahead, 0.0f, 1.0f) - clean;
  return d + momentum * (u - d) + (1.0f - momentum) * (d - (x_prev - clean));
}

// n / d for n < 2^31 by a multiplication (Granlund and Montgomery 1994).
struct Division {
  uint32_t divisor = 1, magic = 0, shift = 0;

  Division() = default;
  explicit Division(uint32_t d) : divisor(d) {
    while ((uint64_t{1} << shift) < d) ++shift;
    magic = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift) - d) / d + 1);
  }
  FA_HD uint32_t quotient(uint32_t n) const {
    const uint32_t high = static_cast<uint32_t>(uint64_t{n} * magic >> 32);
    return (high + n) >> shift;
  }
};

// Which channel an offset in a sample has: runs of `inner` elements share one, and `count`
// channels take turns. NCHW has runs of hw, channels_last runs of one.
struct Channels {
  Division inner, count;

  Channels() = default;
  Channels(int64_t c, int64_t hw, bool channels_last)
      : inner(channels_last ? 1 : static_cast<uint32_t>(hw)), count(static_cast<uint32_t>(c)) {}
};

// Steps through consecutive offsets, keeping the channel.
struct Walk {
  uint32_t channel, left;

  FA_HD Walk(const Channels &c, uint32_t offset) {
    const uint32_t run = c.inner.quotient(offset);
    channel = run - c.count.quotient(run) * c.count.divisor;
    left = (run + 1) * c.inner.divisor - offset;
  }
  FA_HD void next(const Channels &c) {
    if (--left) return;
    left = c.inner.divisor;
    channel = channel + 1 == c.count.divisor ? 0 : channel + 1;
  }
};

// Partial sums of a row: tiles of `width` elements, at most kMaxParts of them, since every block
// of the pass that uses them reads all of its sample's.
constexpr uint32_t kPartWidth = 4096, kMaxParts = 512;

struct Parts {
  uint32_t width, count;

  explicit Parts(int64_t row) {
    const int64_t least = (row + kMaxParts - 1) / kMaxParts;
    width = static_cast<uint32_t>((least + kPartWidth - 1) / kPartWidth * kPartWidth);
    count = static_cast<uint32_t>((row + width - 1) / width);
  }
};

}  // namespace FA_ISA
