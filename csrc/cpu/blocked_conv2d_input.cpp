// conv2d_input with gy [blocks, N, H', W', lanes] and dx [blocks, C, H, W, lanes].
//
// Strips scatter: a strip's gradients of one pixel, once loaded, serve all its columns.  Single weights
// gather.  Strips in bfloat16 too.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "amx_conv2d.h"
#include "conv_bands.h"
#include "scatter.h"

namespace fedsparse {
namespace {

// The input pixels of one remainder by the stride are a gather of their own.
template <typename T>
struct Phase {
  Pair at;
  int64_t height;  // its rows of the whole map
  GatherRows<T> rows;
};

template <typename T>
std::vector<Phase<T>> phases_of(const Conv& conv, const Band& band, const Index& index, const T* values) {
  const int64_t line = kLanes<T>;
  const Pair taps{(conv.kernel.y - 1) / conv.stride.y + 1, (conv.kernel.x - 1) / conv.stride.x + 1};
  const ChannelBlocks plan =
      channel_blocks(index, conv.rows, band.plane.lines * line,
                     tile_lines(register_tile(), taps, {1, 1}, conv.dilation), conv.stride.y * conv.stride.x);
  std::vector<Phase<T>> phases;
  for (int64_t y = 0; y < std::min(conv.stride.y, conv.in.y); ++y)
    for (int64_t x = 0; x < std::min(conv.stride.x, conv.in.x); ++x)
      phases.push_back(
          {{y, x},
           (conv.in.y - y + conv.stride.y - 1) / conv.stride.y,
           GatherRows<T>(index, values,
                         gradient_table("blocked_conv2d_input", conv, band.plane, {y, x}, line), plan)});
  return phases;
}

// One channel of dx from its padded sums, or zeros where those are null.
template <typename T>
void write_channel(const Conv& conv, const PaddedPlane& plane, const T* sums, T* dx) {
  constexpr int64_t kLine = kLanes<T>;
  const int64_t pixels = conv.in.y * conv.in.x;
  if (sums == nullptr) {
    std::fill(dx, dx + pixels * kLine, T(0));
    return;
  }
  const LineKernels<T>& lines = line_kernels<T>();
  // With a horizontal stride the columns are sorted by their remainder.
  const int64_t run = conv.stride.x == 1 ? conv.in.x : 1;
  for (int64_t pixel = 0; pixel < pixels; pixel += run)
    lines.copy(sums + plane.place[pixel] * kLine, run, dx + pixel * kLine);
}

// `read` are the input channels that some weight reads.  Padded sums of one block of images, and a plane
// more, to which entries without weight add.
template <typename T>
void scatter_block(const Conv& conv, const PaddedPlane& plane, const ScatterStrips<T>& strips,
                   const std::vector<char>& read, int64_t part, const T* grad, T* sums, T* dx) {
  constexpr int64_t kLine = kLanes<T>, kBandBytes = 512 * 1024;
  const int64_t first = strips.first(part), last = strips.first(part + 1);
  const int64_t size = plane.lines * kLine;
  for (int64_t c = first; c < last; ++c)
    if (read[c]) std::fill(sums + c * size, sums + (c + 1) * size, T(0));
  Scatter<T> s{sums,
               conv.stride.y * plane.pitch * kLine,
               grad,
               conv.out.y * conv.out.x * kLine,
               conv.out.x * kLine,
               0,
               0,
               conv.out.x};
  // The same bands for any number of parts: they order the sums.
  const int64_t row_bytes = conv.channels * plane.pitch * kLine * static_cast<int64_t>(sizeof(T));
  const int64_t rows = std::max<int64_t>(1, kBandBytes / row_bytes);
  for (; s.row_begin < conv.out.y; s.row_begin = s.row_end) {
    s.row_end = std::min(conv.out.y, s.row_begin + rows);
    strips.run(s, part);
  }
  for (int64_t c = first; c < last; ++c)
    write_channel(conv, plane, read[c] ? sums + c * size : nullptr, dx + c * conv.in.y * conv.in.x * kLine);
}

template <typename T>
void scatter_gradient(const Conv& conv, const Index& index, const Tensor& values, const Tensor& gy,
                      Tensor& dx) {
  const PaddedPlane plane = input_plane(conv);
  const auto table = input_table("blocked_conv2d_input", conv, plane, kLanes<T>);
  const int64_t blocks = gy.size(0), threads = torch::stable::get_num_threads();
  const int64_t spare = conv.channels * plane.lines * kLanes<T>;
  const ScatterStrips<T> strips(index, in_ptr<T>(values), table, conv.channels, spare,
                                std::max<int64_t>(1, threads / blocks));
  std::vector<char> read(conv.channels, 0);
  for (const int32_t channel : read_channels(index, conv.taps())) read[channel] = 1;
  const int64_t items = blocks * strips.parts(), workers = std::min(threads, items);
  const int64_t size = spare + plane.lines * kLanes<T>;
  const Tensor sums = torch::stable::new_empty(gy, {workers * size});
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      T* const own = out_ptr<T>(sums) + worker * size;
      std::fill(own + spare, own + size, T(0));
      for (int64_t item = worker * items / workers; item < (worker + 1) * items / workers; ++item) {
        const int64_t block = item / strips.parts();
        scatter_block(conv, plane, strips, read, item % strips.parts(),
                      in_ptr<T>(gy) + block * conv.rows * conv.out.y * conv.out.x * kLanes<T>, own,
                      out_ptr<T>(dx) + block * conv.channels * conv.in.y * conv.in.x * kLanes<T>);
      }
    }
  });
}

template <typename T>
void gather_gradient(const Conv& conv, const Index& index, const Tensor& values, const Tensor& gy,
                     Tensor& dx) {
  const Band band = gradient_band<T>(conv);
  const auto phases = phases_of<T>(conv, band, index, in_ptr<T>(values));
  const int64_t out_row = conv.in.x * kLanes<T>, out_channel = conv.in.y * out_row;
  BandWork<T>(band, index, gy).run([&](int64_t block, int64_t b, const T* in, int64_t begin, int64_t end) {
    T* const out = out_ptr<T>(dx) + block * conv.channels * out_channel;
    for (const Phase<T>& phase : phases) {
      const int64_t rows = std::min(band.out_rows, phase.height - band.first(b));
      if (rows <= 0) continue;
      const int64_t y = band.first(b) * conv.stride.y + phase.at.y;
      phase.rows.run({nullptr, in, band.plane.pitch * kLanes<T>, out + y * out_row + phase.at.x * kLanes<T>,
                      out_channel, conv.stride.y * out_row, conv.stride.x * kLanes<T>, rows,
                      (conv.in.x - phase.at.x + conv.stride.x - 1) / conv.stride.x},
                     begin, end);
    }
  });
}

Tensor blocked_conv2d_input(Tensor values_in, Tensor indptr, Tensor cols, std::optional<Tensor> t_indptr,
                            std::optional<Tensor> t_cols, std::optional<Tensor> t_perm, int64_t granularity,
                            int64_t channels, Tensor gy_in, std::vector<int64_t> size,
                            std::vector<int64_t> kernel, std::vector<int64_t> stride,
                            std::vector<int64_t> padding, std::vector<int64_t> dilation) {
  const char* op = "blocked_conv2d_input";
  const Tensor values = checked_operand(op, "values", values_in, 1),
               gy = checked_blocked_operand(op, "gy", gy_in);
  require_same_type(op, "gy", gy, values);
  require(size.size() == 2 && size[0] >= 0 && size[1] >= 0, op,
          ": size must be the height and width of the input.");
  const Conv conv = checked_conv(op, gy.size(0) * gy.size(4), channels, gy.size(1), {size[0], size[1]},
                                 kernel, stride, padding, dilation);
  require(gy.size(2) == conv.out.y && gy.size(3) == conv.out.x, op, ": gy must have ", conv.out.y, " x ",
          conv.out.x, " pixels, not ", gy.size(2), " x ", gy.size(3), ".");
  const Transposable weight{indptr, cols, t_indptr, t_cols, t_perm, granularity, channels};
  const Index rows = weight.rows(op, conv.taps());
  require(values.size(0) == rows.nnz, op, ": values must have ", rows.nnz, " entries.");
  require(conv.rows == rows.rows, op, ": gy must have ", rows.rows, " channels, not ", conv.rows, ".");
  Tensor dx = torch::stable::new_empty(gy, {gy.size(0), conv.channels, conv.in.y, conv.in.x, gy.size(4)});
  if (dx.numel() == 0) return dx;
  if (is_bf16(gy)) {
    amx_input_gradient(op, conv, rows, values, gy, dx);
    return dx;
  }
  by_type(values, [&](auto zero) {
    using T = decltype(zero);
    if (rows.strip > 1) return scatter_gradient<T>(conv, rows, values, gy, dx);
    const Index columns = weight.t_indptr ? weight.columns(op, conv.taps()) : transposed(rows, conv.taps());
    gather_gradient<T>(conv, columns, values, gy, dx);
  });
  return dx;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("blocked_conv2d_input", TORCH_BOX(&fedsparse::blocked_conv2d_input));
}
