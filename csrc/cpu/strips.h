// Strips: V consecutive rows of the weight that share their columns (Vx1 masks, and every weight without
// zeros).  An input line once loaded serves all rows of a strip, so these kernels run near the machine's
// multiply-add peak where single weights wait for the caches.  Compiled once for each instruction set.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fedsparse {

// Rows that the kernels hold in registers at a time: V is a multiple of it.
inline constexpr int64_t kQuad = 4;

// `rows` is V.  Strip s reads the input lines at offsets[starts[s]] to offsets[starts[s + 1]], as `Gather`
// has them.  Its weights begin at packed[starts[s] * V]: quad by quad of its rows, and in a quad entry by
// entry.
struct Strips {
  int64_t rows;
  const int32_t *starts, *offsets;
};

// Gradient to the input of strips: every output pixel adds to the lines that its entries read.  For pixel (y,
// x) that is the line at offset + y * sums_row + x * line of `sums`; row r of the weight has its gradients at
// grad + r * grad_channel + y * grad_row + x * line.
template <typename T>
struct Scatter {
  T* sums;
  int64_t sums_row;
  const T* grad;
  int64_t grad_channel, grad_row;
  int64_t row_begin, row_end;  // rows of pixels
  int64_t width;
};

template <typename T>
struct StripKernels {
  // As Kernels::gather; blocks and taps of the Gather are not read.
  void (*gather)(const Gather<T>&, const Strips&, const T* packed, int64_t strip_begin, int64_t strip_end);
  // As Kernels::sample, with the gradient packed; blocks, offsets, scratch and gradient are not read.
  void (*sample)(const Sample<T>&, const Strips&, T* packed, int64_t strip_begin, int64_t strip_end);
  // Here every strip has a multiple of scatter_entries entries, and its weights lie in groups of so many, in
  // a group row by row.  The entries of a group must not share an offset, unless their weights are zero.
  void (*scatter)(const Scatter<T>&, const Strips&, const T* packed, int64_t strips);
  int64_t scatter_entries;
};

struct StripTable {
  StripKernels<float> single;
  StripKernels<double> twice;
};

extern const StripTable kStrips_portable;
#if defined(FEDSPARSE_X86)
extern const StripTable kStrips_avx2;
extern const StripTable kStrips_avx512;
#endif

// Of the instruction set that chosen_isa() names.
template <typename T>
const StripKernels<T>& strip_kernels();

}  // namespace fedsparse
