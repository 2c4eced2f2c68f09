// dx[b, c, iy, ix] = sum over the active (n, c, ky, kx) and the output pixels (oy, ox) that read (iy, ix)
// through them
//                    of values * gy[b, n, oy, ox]
//
// The input pixels of one remainder by the stride are a gather of their own, over the weights that serve
// them.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "blocked.h"
#include "conv_blocks.h"
#include "conv_geometry.h"
#include "rows.h"

namespace fedsparse {
namespace {

template <typename T>
struct Phase {
  GatherRows<T> rows;
  Gather<T> gather;
};

template <typename T>
std::vector<Phase<T>> phases_of(const Conv& conv, const PaddedPlane& plane, const Index& index,
                                const T* values, const T* padded, T* lines) {
  std::vector<Phase<T>> phases;
  const int64_t line = kLanes<T>;
  const Pair taps{(conv.kernel.y - 1) / conv.stride.y + 1, (conv.kernel.x - 1) / conv.stride.x + 1};
  const int64_t lines_read = tile_lines(register_tile(), taps, {1, 1}, conv.dilation);
  const ChannelBlocks plan =
      channel_blocks(index, conv.rows, plane.lines * line, lines_read, conv.stride.y * conv.stride.x);
  for (int64_t y = 0; y < std::min(conv.stride.y, conv.in.y); ++y)
    for (int64_t x = 0; x < std::min(conv.stride.x, conv.in.x); ++x) {
      GatherRows<T> rows(index, values, gradient_table("conv2d_input", conv, plane, {y, x}, line), plan);
      const Gather<T> gather{nullptr,
                             padded,
                             plane.pitch * line,
                             lines + (y * conv.in.x + x) * line,
                             conv.in.y * conv.in.x * line,
                             conv.stride.y * conv.in.x * line,
                             conv.stride.x * line,
                             (conv.in.y - y + conv.stride.y - 1) / conv.stride.y,
                             (conv.in.x - x + conv.stride.x - 1) / conv.stride.x};
      phases.push_back({std::move(rows), gather});
    }
  return phases;
}

template <typename T>
void input_gradient(const Conv& conv, const Index& index, const Tensor& values, const Tensor& gy,
                    Tensor& dx) {
  const PaddedPlane plane = gradient_plane(conv);
  const Images<const T> grads{in_ptr<T>(gy), conv.batch, conv.rows, conv.out.y * conv.out.x};
  const Images<T> outputs{out_ptr<T>(dx), conv.batch, conv.channels, conv.in.y * conv.in.x};
  const int64_t out_channel = outputs.pixels * kLanes<T>;
  const Tensor padded = torch::stable::new_zeros(gy, {conv.rows * plane.lines * kLanes<T>});
  const Tensor lines = torch::stable::new_empty(gy, {conv.channels * out_channel});
  const auto phases =
      phases_of<T>(conv, plane, index, in_ptr<T>(values), in_ptr<T>(padded), out_ptr<T>(lines));

  for (int64_t block = 0; block < blocks_of<T>(conv.batch); ++block) {
    read_block(grads, block, plane.place.data(), plane.lines, out_ptr<T>(padded));
    over_rows(index, [&](int64_t, int64_t begin, int64_t end) {
      for (const Phase<T>& phase : phases) phase.rows.run(phase.gather, begin, end);
      for (int64_t c = begin; c < end; ++c)
        kernels<T>().from_lines(outputs.plane(block), in_ptr<T>(lines) + c * out_channel,
                                outputs.at(block, c));
    });
  }
}

Tensor conv2d_input(Tensor values_in, Tensor indptr, Tensor cols, std::optional<Tensor> t_indptr,
                    std::optional<Tensor> t_cols, std::optional<Tensor> t_perm, int64_t granularity,
                    int64_t channels, Tensor gy_in, std::vector<int64_t> size, std::vector<int64_t> kernel,
                    std::vector<int64_t> stride, std::vector<int64_t> padding,
                    std::vector<int64_t> dilation) {
  const char* op = "conv2d_input";
  const Tensor values = checked_floats(op, "values", values_in, 1), gy = checked_floats(op, "gy", gy_in, 4);
  require_same_type(op, "gy", gy, values);
  require(size.size() == 2 && size[0] >= 0 && size[1] >= 0, op,
          ": size must be the height and width of the input.");
  const Conv conv = checked_conv(op, gy.size(0), channels, gy.size(1), {size[0], size[1]}, kernel, stride,
                                 padding, dilation);
  require(gy.size(2) == conv.out.y && gy.size(3) == conv.out.x, op, ": gy must have ", conv.out.y, " x ",
          conv.out.x, " pixels, not ", gy.size(2), " x ", gy.size(3), ".");
  const Transposable weight{indptr, cols, t_indptr, t_cols, t_perm, granularity, channels};
  const Index index = weight.columns(op, conv.taps());
  require(index.width == conv.rows * conv.taps(), op, ": gy must have ", index.width / conv.taps(),
          " channels, not ", conv.rows, ".");
  require(values.size(0) == index.nnz, op, ": values must have ", index.nnz, " entries.");
  Tensor dx = torch::stable::new_empty(gy, {conv.batch, conv.channels, conv.in.y, conv.in.x});
  if (dx.numel() == 0) return dx;
  by_type(values, [&](auto zero) { input_gradient<decltype(zero)>(conv, index, values, gy, dx); });
  return dx;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("conv2d_input", TORCH_BOX(&fedsparse::conv2d_input)); }
