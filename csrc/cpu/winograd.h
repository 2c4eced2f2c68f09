// The gradient to all weights of a 3x3 convolution by Winograd's minimal filtering (Lavin & Gray, CVPR 2016):
// few products for each 4x4 tile of the gradient of the output, where the sum itself takes 144.
//
//   dW = A^T [ sum over tiles and images of (G g G^T) * (B^T x B) ] A
//
// g is the tile, x the window of inputs that it meets.  Stride 1: F(3x3, 4x4), 6x6 inputs, 36 products, at
// the points 0, 1, -1, 2, -2 and infinity.  Stride 2: 9x9 inputs, 81 products; along each side taps 0 and 2
// are F(2, 4) over the even inputs at 0, 1, -1, 2 and infinity, and tap 1 is the plain sum over the odd ones.
// Only fp32.
#pragma once

#include <cstdint>

#include "isa.h"

namespace fedsparse {

inline constexpr int64_t kWinogradTile = 4;
// Rows and columns of the weight that are multiplied at a time; their numbers are rounded up to them.
inline constexpr int64_t kWinogradRows = 4, kWinogradColumns = 16;

struct WinogradScheme {
  int64_t points, side, step;  // products, side of the window, and from one window to the next
  // For kWinogradColumns columns, whose windows are lines[column * side * side + side * y + x], one line of
  // images each: out[p * position + image * kWinogradColumns + column] = point p of B^T x B.
  void (*input)(const float* const* lines, float* out, int64_t position);
  // For one row: out[p * position + image] = point p of G g G^T; lines[4 * y + x].
  void (*gradient)(const float* const* lines, float* out, int64_t position);
  // The taps of four columns, taps[9 * column + tap], of the sums[p * position + column] of a row.
  void (*taps)(const float* sums, int64_t position, float* taps);
};

struct WinogradKernels {
  WinogradScheme unit, strided;
  // sums[row * columns + column] += sum over `count` images and tiles k of gradients[row * count + k] *
  // inputs[(column / kWinogradColumns * count + k) * kWinogradColumns + column % kWinogradColumns]; = where
  // fresh.
  void (*multiply)(const float* gradients, int64_t rows, const float* inputs, int64_t columns, int64_t count,
                   bool fresh, float* sums);
};

extern const WinogradKernels kWinograd_portable;
#if defined(FEDSPARSE_X86)
extern const WinogradKernels kWinograd_avx2;
extern const WinogradKernels kWinograd_avx512;
#endif

}  // namespace fedsparse
