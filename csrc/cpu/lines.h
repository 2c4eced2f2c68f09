// Kernels over whole lines of blocked tensors: normalisation, pooling, copies.  Compiled once for each
// instruction set.
//
// A "plane" is the pixels of one channel in one block of images, one line of kLanes<T> images a pixel.  Every
// kernel works lane by lane: what stands in a lane without an image never reaches another lane.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fedsparse {

// out = x * scale + shift (+ residual), then ReLU.  scale and shift are lines; residual may be null.
template <typename T>
struct Norm {
  const T *x, *scale, *shift, *residual;
  T* out;
  int64_t lines;
  bool relu;
};

// First pass of a norm's backward.  With m = gy where ReLU let it through, writes two lines:
// sums[0] = sum of m, sums[1] = sum of m * (x - mean).  ReLU is read off `out` (the norm's result) where that
// is given, else off x * scale + shift.  Where `masked` is given, m is written to it.
template <typename T>
struct NormSums {
  const T *gy, *x, *scale, *shift, *mean, *out;
  T *masked, *sums;
  int64_t lines;
  bool relu;
};

// Second pass: dx = m * a + (x - mean) * b + c; a, b and c are lines.
template <typename T>
struct NormApply {
  const T *gy, *x, *scale, *shift, *mean;
  const T *a, *b, *c;
  T* dx;
  int64_t lines;
  bool relu;
};

// The input pixels of each output pixel: rows top[y] to bottom[y], columns left[x] to right[x], ends
// excluded.
struct Windows {
  const int64_t *top, *bottom, *left, *right;
  int64_t height, width;  // of the output
  int64_t in_width;
};

template <typename T>
struct LineKernels {
  void (*norm)(const Norm<T>&);
  void (*norm_sums)(const NormSums<T>&);
  void (*norm_apply)(const NormApply<T>&);
  // sums = sum over the lines of x, squares = sum of (x - mean)^2; mean is a line.
  void (*sum)(const T* x, int64_t lines, T* sums);
  void (*squares)(const T* x, int64_t lines, const T* mean, T* sums);
  void (*copy)(const T* from, int64_t lines, T* to);
  // The first `valid` lanes of each line; the others are written as zero.
  void (*copy_valid)(const T* from, int64_t lines, int64_t valid, T* to);
  // picked: for each output line kLanes<T> bytes, the place of the maximum in its window (the first one, or
  // the last NaN).
  void (*max)(const Windows&, const T* x, T* out, uint8_t* picked);
  void (*max_gradient)(const Windows&, const T* gy, const uint8_t* picked, T* dx);
  // Sum over the window divided by `divisor`, or by the window's size where divisor is 0.
  void (*average)(const Windows&, T divisor, const T* x, T* out);
  void (*average_gradient)(const Windows&, T divisor, const T* gy, T* dx);
};

struct LineTable {
  LineKernels<float> single;
  LineKernels<double> twice;
};

extern const LineTable kLines_portable;
#if defined(FEDSPARSE_X86)
extern const LineTable kLines_avx2;
extern const LineTable kLines_avx512;
#endif

// Of the instruction set that chosen_isa() names.
template <typename T>
const LineKernels<T>& line_kernels();

}  // namespace fedsparse
