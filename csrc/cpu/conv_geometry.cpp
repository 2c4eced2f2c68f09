#include "conv_geometry.h"

#include <algorithm>
#include <limits>

namespace fedsparse {
namespace {

Pair checked_pair(const char* op, const char* name, const std::vector<int64_t>& pair, int64_t least) {
  require(pair.size() == 2 && pair[0] >= least && pair[1] >= least && std::max(pair[0], pair[1]) < (1 << 20),
          op, ": ", name, " must be two integers of at least ", least, ".");
  return {pair[0], pair[1]};
}

int64_t out_size(const char* op, int64_t in, int64_t kernel, int64_t stride, int64_t padding,
                 int64_t dilation) {
  const int64_t span = dilation * (kernel - 1) + 1, padded = in + 2 * padding;
  require(span <= padded, op, ": the kernel spans ", span, " pixels, the padded input has only ", padded,
          ".");
  return (padded - span) / stride + 1;
}

void require_small(const char* op, int64_t channels, int64_t lines, int64_t line) {
  require(channels * lines * line <= std::numeric_limits<int32_t>::max(), op,
          ": one block of images has 2^31 elements or more; int32 offsets cannot reach them.");
}

}  // namespace

int64_t channel_lines(int64_t rows, int64_t pitch) { return (rows * pitch + 3) / 8 * 8 + 4; }

Conv checked_conv(const char* op, int64_t batch, int64_t channels, int64_t rows, Pair in,
                  const std::vector<int64_t>& kernel, const std::vector<int64_t>& stride,
                  const std::vector<int64_t>& padding, const std::vector<int64_t>& dilation) {
  Conv conv{batch,
            channels,
            rows,
            in,
            {},
            checked_pair(op, "kernel", kernel, 1),
            checked_pair(op, "stride", stride, 1),
            checked_pair(op, "padding", padding, 0),
            checked_pair(op, "dilation", dilation, 1)};
  require(in.y >= 1 && in.x >= 1, op, ": the input must have at least one pixel, not ", in.y, " x ", in.x,
          ".");
  conv.out.y = out_size(op, in.y, conv.kernel.y, conv.stride.y, conv.padding.y, conv.dilation.y);
  conv.out.x = out_size(op, in.x, conv.kernel.x, conv.stride.x, conv.padding.x, conv.dilation.x);
  return conv;
}

PaddedPlane input_plane(const Conv& conv) {
  const int64_t part = (conv.in.x + 2 * conv.padding.x + conv.stride.x - 1) / conv.stride.x;
  PaddedPlane plane{part * conv.stride.x, 0, {}};
  plane.lines = channel_lines(conv.in.y + 2 * conv.padding.y, plane.pitch);
  plane.place.reserve(conv.in.y * conv.in.x);
  for (int64_t y = conv.padding.y; y < conv.in.y + conv.padding.y; ++y)
    for (int64_t x = conv.padding.x; x < conv.in.x + conv.padding.x; ++x)
      plane.place.push_back(
          static_cast<int32_t>(y * plane.pitch + x % conv.stride.x * part + x / conv.stride.x));
  return plane;
}

std::vector<int32_t> input_table(const char* op, const Conv& conv, const PaddedPlane& plane, int64_t line) {
  require_small(op, conv.channels, plane.lines, line);
  const int64_t part = plane.pitch / conv.stride.x;
  std::vector<int32_t> table;
  table.reserve(conv.channels * conv.taps());
  for (int64_t c = 0; c < conv.channels; ++c)
    for (int64_t ky = 0; ky < conv.kernel.y; ++ky)
      for (int64_t kx = 0; kx < conv.kernel.x; ++kx) {
        const int64_t y = ky * conv.dilation.y, x = kx * conv.dilation.x;
        const int64_t at = y * plane.pitch + x % conv.stride.x * part + x / conv.stride.x;
        table.push_back(static_cast<int32_t>((c * plane.lines + at) * line));
      }
  return table;
}

int64_t tile_lines(Pair tile, Pair kernel, Pair stride, Pair dilation) {
  const auto side = [](int64_t pixels, int64_t taps, int64_t step, int64_t spread) {
    return std::min(pixels * taps, (pixels - 1) * step + (taps - 1) * spread + 1);
  };
  return side(tile.y, kernel.y, stride.y, dilation.y) * side(tile.x, kernel.x, stride.x, dilation.x);
}

namespace {

// How far left of output pixel 0 an input pixel may look.
int64_t before(int64_t kernel, int64_t stride, int64_t padding, int64_t dilation) {
  return std::max<int64_t>(0, (kernel - 1) * dilation - padding) / stride;
}

int64_t padded_size(int64_t in, int64_t out, int64_t stride, int64_t padding) {
  return std::max((in - 1 + padding) / stride, out - 1) + 1;
}

}  // namespace

PaddedPlane gradient_plane(const Conv& conv) {
  const Pair first{before(conv.kernel.y, conv.stride.y, conv.padding.y, conv.dilation.y),
                   before(conv.kernel.x, conv.stride.x, conv.padding.x, conv.dilation.x)};
  PaddedPlane plane{first.x + padded_size(conv.in.x, conv.out.x, conv.stride.x, conv.padding.x), 0, {}};
  const int64_t rows = first.y + padded_size(conv.in.y, conv.out.y, conv.stride.y, conv.padding.y);
  plane.lines = channel_lines(rows, plane.pitch);
  plane.place.reserve(conv.out.y * conv.out.x);
  for (int64_t y = 0; y < conv.out.y; ++y)
    for (int64_t x = 0; x < conv.out.x; ++x)
      plane.place.push_back(static_cast<int32_t>((y + first.y) * plane.pitch + x + first.x));
  return plane;
}

std::vector<int32_t> gradient_table(const char* op, const Conv& conv, const PaddedPlane& plane, Pair phase,
                                    int64_t line) {
  require_small(op, conv.rows, plane.lines, line);
  const Pair first{before(conv.kernel.y, conv.stride.y, conv.padding.y, conv.dilation.y),
                   before(conv.kernel.x, conv.stride.x, conv.padding.x, conv.dilation.x)};
  std::vector<int32_t> table;
  table.reserve(conv.rows * conv.taps());
  for (int64_t n = 0; n < conv.rows; ++n)
    for (int64_t ky = 0; ky < conv.kernel.y; ++ky)
      for (int64_t kx = 0; kx < conv.kernel.x; ++kx) {
        const int64_t y = phase.y + conv.padding.y - ky * conv.dilation.y;
        const int64_t x = phase.x + conv.padding.x - kx * conv.dilation.x;
        const bool serves = y % conv.stride.y == 0 && x % conv.stride.x == 0;
        const int64_t at = (y / conv.stride.y + first.y) * plane.pitch + x / conv.stride.x + first.x;
        table.push_back(serves ? static_cast<int32_t>((n * plane.lines + at) * line) : -1);
      }
  return table;
}

}  // namespace fedsparse
