#include "amx_conv2d.h"

#include <algorithm>

#include "amx_strips.h"
#include "blocked_weight.h"
#include "conv_bands.h"

namespace fedsparse {
namespace {

// Of lines of bfloat16, what bands and gradients are copied by; the other kernels are for fp32 and fp64.
void copy(const Bf16* from, int64_t lines, Bf16* to) { std::copy_n(from, lines * kLanes<Bf16>, to); }

void copy_valid(const Bf16* from, int64_t lines, int64_t valid, Bf16* to) {
  for (int64_t at = 0; at < lines * kLanes<Bf16>; at += kLanes<Bf16>) {
    std::copy_n(from + at, valid, to + at);
    std::fill(to + at + valid, to + at + kLanes<Bf16>, Bf16{0});
  }
}

constexpr LineKernels<Bf16> copies_only() {
  LineKernels<Bf16> kernels{};
  kernels.copy = &copy;
  kernels.copy_valid = &copy_valid;
  return kernels;
}

constexpr LineKernels<Bf16> kLines = copies_only();

std::vector<float> floats_of(const Tensor& tensor) {
  std::vector<float> found(tensor.numel());
  for (int64_t i = 0; i < tensor.numel(); ++i) found[i] = number(in_ptr<Bf16>(tensor)[i]);
  return found;
}

// Columns of channels [begin, end).
ColumnRange columns_of(const Conv& conv, int64_t begin, int64_t end) {
  return {begin * conv.taps(), end * conv.taps()};
}

// Every output pixel is its bias.
void fill_with_bias(const std::optional<Tensor>& bias, Tensor& y) {
  const Planes<Bf16> planes = planes_of(y, 0, out_ptr<Bf16>(y));
  for (int64_t block = 0; block < planes.blocks; ++block)
    for (int64_t n = 0; n < planes.channels; ++n)
      std::fill_n(planes.at(block, n), planes.lines * kLanes<Bf16>, bias ? in_ptr<Bf16>(*bias)[n] : Bf16{0});
}

// ---- gradient to the input

// Some channels of dx: their strips' entries, and weights in units of [kSide entries][V].
struct ScatterPart {
  int64_t first, last;
  UnitStrips strips;
  Tensor weights;
};

ScatterPart scatter_part(const char* op, const Conv& conv, const Index& index, const Tensor& values,
                         const std::vector<int32_t>& table, int64_t first, int64_t last) {
  UnitStrips strips(op, index, table, columns_of(conv, first, last), kSide);
  const Tensor weights = torch::stable::new_zeros(values, {strips.units() * kSide * strips.rows()});
  strips.each_weight(index, [&](int64_t s, int64_t row, int64_t e, int64_t at) {
    out_ptr<Bf16>(weights)[(strips.unit(s) * kSide + e) * strips.rows() + row] = in_ptr<Bf16>(values)[at];
  });
  return {first, last, std::move(strips), weights};
}

// Where the gradient of one band lies with its rows in pairs.
struct PairedBand {
  int64_t rows, lines;  // of pixels; from one pair to the next
};

// As many rows as keep the sums that they add to near, the same for any number of parts: they order the sums.
// The pairs of rows lie an odd number of lines apart, in all sets of the cache alike.
PairedBand paired_band(const Conv& conv, const PaddedPlane& plane) {
  constexpr int64_t kBytes = 512 * 1024;
  const int64_t row_bytes = conv.channels * plane.pitch * kSide * static_cast<int64_t>(sizeof(float));
  const int64_t rows = std::min(conv.out.y, std::max<int64_t>(1, kBytes / row_bytes));
  return {rows, rows * conv.out.x | 1};
}

// Padded sums of one block of images for the channels of one part, then dx.
void scatter_block(const Conv& conv, const PaddedPlane& plane, const ScatterPart& part,
                   const TileKernels& tiles, const Bf16* grad, Bf16* paired, float* sums, Bf16* dx) {
  const int64_t grad_channel = conv.out.y * conv.out.x * kSide, pixels = conv.in.y * conv.in.x;
  const PairedBand band = paired_band(conv, plane);
  std::fill(sums + part.first * plane.lines * kSide, sums + part.last * plane.lines * kSide, 0.0f);
  for (int64_t first = 0; first < conv.out.y; first += band.rows) {
    const int64_t height = std::min(band.rows, conv.out.y - first), at = first * conv.out.x * kSide;
    for (int64_t n = 0; n < conv.rows; n += 2)
      tiles.interleave(grad + n * grad_channel + at, grad + (n + 1) * grad_channel + at, height * conv.out.x,
                       paired + n / 2 * band.lines * kDepth);
    const int64_t row = conv.stride.y * plane.pitch * kSide;
    tiles.scatter({sums + first * row, row, paired, band.lines, height, conv.out.x}, part.strips.view(),
                  in_ptr<Bf16>(part.weights), part.strips.strips());
  }
  for (int64_t c = part.first; c < part.last; ++c)
    tiles.round(sums + c * plane.lines * kSide, plane.place.data(), pixels, dx + c * pixels * kSide);
}

// ---- gradient to the weights

// Sums of units of [V / 16][kSide entries][16 rows], rounded into dvalues.
void round_gradient(const UnitStrips& strips, const Index& index, const Tensor& sums, Tensor& dvalues) {
  const int64_t tiles = strips.rows() / kSide;
  const Tensor rounded = torch::stable::new_empty(dvalues, {sums.numel()});
  std::vector<int32_t> lines(sums.numel() / kSide);
  for (size_t i = 0; i < lines.size(); ++i) lines[i] = static_cast<int32_t>(i);
  line_tiles().round(in_ptr<float>(sums), lines.data(), static_cast<int64_t>(lines.size()),
                     out_ptr<Bf16>(rounded));
  strips.each_weight(index, [&](int64_t s, int64_t row, int64_t e, int64_t at) {
    const int64_t tile = (strips.unit(s) + e / kSide) * tiles + row / kSide;
    out_ptr<Bf16>(dvalues)[at] = in_ptr<Bf16>(rounded)[tile * kSums + e % kSide * kSide + row % kSide];
  });
}

}  // namespace

template <>
const LineKernels<Bf16>& line_kernels<Bf16>() {
  return kLines;
}

template <>
Bf16 rounded<Bf16>(double x) {
  float line[kLanes<Bf16>] = {static_cast<float>(x)};
  const int32_t place = 0;
  Bf16 found[kLanes<Bf16>];
  line_tiles().round(line, &place, 1, found);
  return found[0];
}

Tensor checked_operand(const char* op, const char* name, const Tensor& tensor, int64_t dims) {
  if (!is_bf16(tensor)) return checked_floats(op, name, tensor, dims);
  require_dims(op, name, tensor, dims);
  return torch::stable::contiguous(tensor);
}

Tensor checked_blocked_operand(const char* op, const char* name, const Tensor& tensor) {
  if (!is_bf16(tensor)) return checked_blocked(op, name, tensor);
  const Tensor blocked = checked_operand(op, name, tensor, 5);
  require(blocked.size(4) == kLanes<Bf16>, op, ": ", name, " must have 16 images in its last dimension, not ",
          blocked.size(4), ".");
  return blocked;
}

void amx_forward(const char* op, const Conv& conv, const Index& index, const Tensor& values,
                 const std::optional<Tensor>& bias, const Tensor& x, Tensor& y) {
  const TileKernels& tiles = required_tiles(op);
  if (index.nnz == 0) return fill_with_bias(bias, y);
  const Band band = input_band<Bf16>(conv, index);
  const auto table = input_table(op, conv, band.plane, kSide);
  const UnitStrips strips(op, index, table, columns_of(conv, 0, conv.channels), kDepth);
  const int64_t per_unit = strips.rows() / kSide;
  const Tensor weights = torch::stable::new_zeros(values, {strips.units() * per_unit * kTile});
  strips.each_weight(index, [&](int64_t s, int64_t row, int64_t e, int64_t at) {
    const int64_t tile = (strips.unit(s) + e / kDepth) * per_unit + row / kSide;
    out_ptr<Bf16>(weights)[tile * kTile + row % kSide * kDepth + e % kDepth] = in_ptr<Bf16>(values)[at];
  });
  const std::vector<float> biases = bias ? floats_of(*bias) : std::vector<float>{};
  const int64_t out_row = conv.out.x * kSide, out_channel = conv.out.y * out_row;
  BandWork<Bf16>(band, index, x)
      .run([&](int64_t block, int64_t b, const Bf16* in, int64_t begin, int64_t end) {
        Bf16* const out = out_ptr<Bf16>(y) + block * conv.rows * out_channel + band.first(b) * out_row;
        tiles.gather({bias ? biases.data() : nullptr, in, conv.stride.y * band.plane.pitch * kSide, out,
                      out_channel, out_row, band.height_of(b), conv.out.x},
                     strips.view(), in_ptr<Bf16>(weights), begin / strips.rows(), end / strips.rows());
      });
}

void amx_input_gradient(const char* op, const Conv& conv, const Index& index, const Tensor& values,
                        const Tensor& gy, Tensor& dx) {
  const TileKernels& tiles = required_tiles(op);
  if (index.nnz == 0) return fill_with_bias(std::nullopt, dx);
  const PaddedPlane plane = input_plane(conv);
  const auto table = input_table(op, conv, plane, kSide);
  const int64_t blocks = gy.size(0), threads = torch::stable::get_num_threads();
  const int64_t parts = std::min(conv.channels, std::max<int64_t>(1, threads / blocks));
  std::vector<ScatterPart> of_channels;
  for (int64_t part = 0; part < parts; ++part)
    of_channels.push_back(scatter_part(op, conv, index, values, table, part * conv.channels / parts,
                                       (part + 1) * conv.channels / parts));
  const int64_t items = blocks * parts, workers = std::min(threads, items);
  const int64_t size = conv.channels * plane.lines * kSide;
  const int64_t paired_size = conv.rows / 2 * paired_band(conv, plane).lines * kDepth;
  const Tensor sums = torch::stable::new_empty(gy, {workers * size}, ScalarType::Float);
  const Tensor paired = torch::stable::new_empty(gy, {workers * paired_size});
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker)
      for (int64_t item = worker * items / workers; item < (worker + 1) * items / workers; ++item) {
        const int64_t block = item / parts;
        scatter_block(conv, plane, of_channels[item % parts], tiles,
                      in_ptr<Bf16>(gy) + block * conv.rows * conv.out.y * conv.out.x * kSide,
                      out_ptr<Bf16>(paired) + worker * paired_size, out_ptr<float>(sums) + worker * size,
                      out_ptr<Bf16>(dx) + block * conv.channels * conv.in.y * conv.in.x * kSide);
      }
  });
}

void amx_weight_gradient(const char* op, const Conv& conv, const Index& index, const Tensor& gy,
                         const Tensor& x, Tensor& dvalues) {
  const TileKernels& tiles = required_tiles(op);
  const Band band = input_band<Bf16>(conv, index);
  const auto table = input_table(op, conv, band.plane, kSide);
  const UnitStrips strips(op, index, table, columns_of(conv, 0, conv.channels), kSide);
  const Planes<const Bf16> images = planes_of(x, conv.batch, in_ptr<Bf16>(x));
  const GradientRows<Bf16> grads(conv, band, gy, 0);
  const Tensor padded = torch::stable::new_zeros(x, {band.size<Bf16>()});
  const Tensor paired =
      torch::stable::new_empty(gy, {band.out_rows * ((conv.out.x + 1) / 2) * conv.rows * kDepth});
  const Tensor sums =
      torch::stable::new_zeros(gy, {strips.units() * strips.rows() * kSide}, ScalarType::Float);
  TileSample s{in_ptr<Bf16>(padded),
               conv.stride.y * band.plane.pitch * kSide,
               in_ptr<Bf16>(paired),
               conv.rows,
               0,
               conv.out.x};
  const int64_t grain = move_grain(band.rows * band.width * kSide);
  for (int64_t block = 0; block < images.blocks; ++block)
    for (int64_t b = 0; b < band.count(); ++b) {
      torch::stable::parallel_for(0, static_cast<int64_t>(band.read.size()), grain,
                                  [&](int64_t begin, int64_t end) {
                                    copy_band(band, images.at(block, 0), band.first(b), images.valid(block),
                                              begin, end, out_ptr<Bf16>(padded));
                                  });
      s.height = band.height_of(b);
      int64_t channel = 0;
      const Bf16* const grad = grads.at(block, band.first(b), s.height, &channel);
      torch::stable::parallel_for(0, conv.rows / kSide, 1, [&](int64_t begin, int64_t end) {
        tiles.pair_pixels(s, grad, channel, begin, end, out_ptr<Bf16>(paired));
      });
      over_rows(index, [&](int64_t, int64_t begin, int64_t end) {
        tiles.sample(s, strips.view(), out_ptr<float>(sums), begin / strips.rows(), end / strips.rows());
      });
    }
  round_gradient(strips, index, sums, dvalues);
}

}  // namespace fedsparse
