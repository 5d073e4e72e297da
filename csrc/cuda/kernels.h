// The plain C interface of the CUDA kernels. Pointers, sizes and a stream only: no Python, no
// torch, so one build serves every torch version. Called from kernels/_cuda.py, whose ctypes
// structures mirror the ones below field by field.
//
// Every image tensor is dense, [n, c, hw] or, with channels_last, [n, hw, c], and a sample has
// fewer than 2^31 elements. Functions return a cudaError_t, or FC_UNKNOWN_DTYPE. They enqueue
// work on `stream` and wait for nothing.
#pragma once
#include <cstdint>

#define FC_EXPORT extern "C" __attribute__((visibility("default")))

enum FcDtype : int32_t { FC_NONE = 0, FC_F32 = 1, FC_BF16 = 2, FC_F16 = 3, FC_U8 = 4 };
constexpr int32_t FC_UNKNOWN_DTYPE = -1;

// The sizes, the stream and the device, which every operator receives.
struct FcCall {
  int64_t n, c, hw;
  void *stream;  // cudaStream_t
  int32_t device, channels_last;
};

// One projected ascent step, or one of APGD where x_prev is given; see the docstrings of
// fastadv.kernels.pgd_step_ and apgd_step_.
struct FcStep {
  FcCall call;
  void *x;                  // FC_F32: the iterate; FC_F16: the perturbation; overwritten
  float *x_prev;            // apgd: the iterate before, overwritten; else null
  const void *x0;           // FC_U8 or FC_F32
  const void *grad;         // FC_F32, FC_BF16 or FC_F16
  void *z;                  // FC_F32, FC_BF16 or FC_F16, or null
  const float *step, *eps;  // [n]
  const float *mean, *std;  // [c]
  int64_t *nonfinite;       // [1], added to, or null
  double *parts;            // l2: fc_parts(n, c * hw) doubles of scratch
  float momentum;           // apgd
  int32_t x_dtype, x0_dtype, grad_dtype, z_dtype;
  int32_t l2;
  int32_t single_pass;  // of pgd l2: 0 keeps it to two passes, else the least size of a cluster
};

// Random start around x0; see fastadv.kernels.ball_init.
struct FcInit {
  FcCall call;
  float *out;
  const void *x0;    // FC_U8 or FC_F32
  const float *eps;  // [n]
  double *parts;     // l2: fc_parts(n, hw) doubles of scratch
  uint64_t seed, offset;
  int32_t x0_dtype, l2;
};

// (x - mean) / std; see fastadv.kernels.normalize.
struct FcNormalize {
  FcCall call;
  void *z;                  // FC_F32, FC_BF16 or FC_F16
  const void *x;            // FC_U8 or FC_F32
  const float *mean, *std;  // [c]
  int32_t x_dtype, z_dtype;
};

// As fa_abi of csrc/cpu/interface.h: a version, the sizes of FcStep, FcInit and FcNormalize, and a
// zero.
FC_EXPORT const int64_t *fc_abi();
FC_EXPORT int32_t fc_pgd_step(const FcStep *args);
FC_EXPORT int32_t fc_apgd_step(const FcStep *args);
FC_EXPORT int32_t fc_ball_init(const FcInit *args);
FC_EXPORT int32_t fc_normalize(const FcNormalize *args);
FC_EXPORT int64_t fc_parts(int64_t n, int64_t row);  // doubles of scratch for rows of `row`
FC_EXPORT int64_t fc_max_channels();
FC_EXPORT int32_t fc_uses_cluster(const FcStep *args);  // size of the cluster, 0 for two passes
FC_EXPORT const char *fc_architectures();               // such as "80,90,100"
FC_EXPORT int32_t fc_runtime_version();                 // 13000 for CUDA 13.0
FC_EXPORT int32_t fc_driver_version();                  // newest CUDA the driver runs; 0: none
FC_EXPORT const char *fc_error_name(int32_t error);
FC_EXPORT const char *fc_error_text(int32_t error);
