// Sizes of a convolution, and where its pixels lie in the padded blocks that the kernels read.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"

namespace fedsparse {

struct Pair {
  int64_t y, x;
};

struct Conv {
  int64_t batch, channels, rows;
  Pair in, out, kernel, stride, padding, dilation;

  int64_t taps() const { return kernel.y * kernel.x; }
};

// Checks the pairs and computes the size of the output.
Conv checked_conv(const char* op, int64_t batch, int64_t channels, int64_t rows, Pair in,
                  const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation);

// A padded plane of `lines` lines for each channel; `pitch` lines from one row of pixels to the next.
struct PaddedPlane {
  int64_t pitch, lines;
  std::vector<int32_t> place;  // line of each pixel
};

// Lines of a channel of that many rows of pixels, at least rows * pitch.  Four times an odd number: the runs
// of about four lines that a tile reads of each channel then fall into all of the cache's sets alike.
int64_t channel_lines(int64_t rows, int64_t pitch);

// The input, padded.  With a horizontal stride, the columns are sorted by their remainder, so that neighbours
// in the output read neighbouring lines.
PaddedPlane input_plane(const Conv& conv);

// Element offset, in that plane, of the line that the first output pixel reads for weight (c * kh + ky) * kw
// + kx.
std::vector<int32_t> input_table(const char* op, const Conv& conv, const PaddedPlane& plane, int64_t line);

// How many lines of one channel the taps of a tile read at most.
int64_t tile_lines(Pair tile, Pair kernel, Pair stride, Pair dilation);

// The gradient of the output, padded so that every input pixel finds all the output pixels it served.
PaddedPlane gradient_plane(const Conv& conv);

// The same for the transpose, weight (n * kh + ky) * kw + kx, and the input pixels at (phase + j * stride):
// negative where the weight serves none of them.
std::vector<int32_t> gradient_table(const char* op, const Conv& conv, const PaddedPlane& plane, Pair phase,
                                    int64_t line);

}  // namespace fedsparse
