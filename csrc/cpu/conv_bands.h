// A convolution over blocked tensors, one band of rows at a time: the rows that a band reads are copied, with
// their padding, into scratch near by.
#pragma once

#include <algorithm>
#include <cstring>
#include <numeric>

#include "blocked_tensor.h"
#include "conv_blocks.h"
#include "conv_geometry.h"
#include "rows.h"

namespace fedsparse {

// Bytes of a band's scratch, where the rows of one register tile do not already take more; a quarter more
// where that holds the whole map, of which no row is then copied twice.
inline constexpr int64_t kBandBytes = 1024 * 1024;

// How the rows of one blocked tensor are laid into a band.
struct Band {
  int64_t channels, height, width;  // of the tensor that is copied
  int64_t rows;                     // rows of a band, padding included
  int64_t step;                     // tensor rows from one output row of the band to the next
  int64_t before;                   // rows of the band in front of the first output row's own
  int64_t out_height, out_rows;     // output rows in all, and of one band
  PaddedPlane plane;                // of one channel of the band
  std::vector<int32_t> column;      // line, in a row of the band, of each column
  std::vector<int32_t> read;        // channels that are copied: those that some weight reads

  int64_t count() const { return (out_height + out_rows - 1) / out_rows; }
  int64_t first(int64_t band) const { return band * out_rows; }
  int64_t height_of(int64_t band) const { return std::min(out_rows, out_height - first(band)); }
  template <typename T>
  int64_t size() const {
    return channels * plane.lines * kLanes<T>;
  }
};

// Rows of a band for `out_rows` output rows: (out_rows - 1) * step + span.  Picks out_rows by the budget.
template <typename T>
Band band_of(Band band, int64_t span) {
  const int64_t tile = register_tile().y, line_bytes = kLanes<T> * static_cast<int64_t>(sizeof(T));
  const auto rows = [&](int64_t out_rows) { return (out_rows - 1) * band.step + span; };
  const auto bytes = [&](int64_t out_rows) {
    return band.channels * rows(out_rows) * band.plane.pitch * line_bytes;
  };
  const bool whole = bytes(band.out_height) <= kBandBytes + kBandBytes / 4;
  band.out_rows = whole ? band.out_height : std::min(tile, band.out_height);
  while (band.out_rows < band.out_height && bytes(band.out_rows + tile) <= kBandBytes)
    band.out_rows = std::min(band.out_rows + tile, band.out_height);
  band.rows = rows(band.out_rows);
  band.plane.lines = channel_lines(band.rows, band.plane.pitch);
  band.column.resize(band.width);
  return band;
}

// Of the input, for forward and the gradient at the active weights.
template <typename T>
Band input_band(const Conv& conv, const Index& index) {
  const PaddedPlane plane = input_plane(conv);
  Band band = band_of<T>({conv.channels,
                          conv.in.y,
                          conv.in.x,
                          0,
                          conv.stride.y,
                          conv.padding.y,
                          conv.out.y,
                          0,
                          {plane.pitch, 0, {}},
                          {},
                          read_channels(index, conv.taps())},
                         (conv.kernel.y - 1) * conv.dilation.y + 1);
  for (int64_t x = 0; x < band.width; ++x)
    band.column[x] = plane.place[x] - static_cast<int32_t>(conv.padding.y * plane.pitch);
  return band;
}

// Of the gradient of the output, for the gradient of the input: its output rows are those of one phase.
template <typename T>
Band gradient_band(const Conv& conv) {
  const PaddedPlane plane = gradient_plane(conv);
  const int64_t before = plane.place[0] / plane.pitch;
  const int64_t after = (conv.stride.y - 1 + conv.padding.y) / conv.stride.y;
  const int64_t phase_rows = (conv.in.y + conv.stride.y - 1) / conv.stride.y;
  std::vector<int32_t> read(conv.rows);
  std::iota(read.begin(), read.end(), 0);
  Band band = band_of<T>(
      {conv.rows, conv.out.y, conv.out.x, 0, 1, before, phase_rows, 0, {plane.pitch, 0, {}}, {}, read},
      before + after + 1);
  for (int64_t x = 0; x < band.width; ++x)
    band.column[x] = plane.place[x] - static_cast<int32_t>(before * plane.pitch);
  return band;
}

// Copies entries [begin, end) of `read` of a band, of images with `valid` lanes.  The scratch was zeroed
// once: channels that nothing reads and the columns of the padding are never written.
template <typename T>
void copy_band(const Band& band, const T* block, int64_t first_output, int64_t valid, int64_t begin,
               int64_t end, T* scratch) {
  constexpr int64_t kLineBytes = kLanes<T> * static_cast<int64_t>(sizeof(T));
  const bool straight = std::is_sorted(band.column.begin(), band.column.end()) &&
                        band.column.back() - band.column.front() == band.width - 1;
  const bool whole = valid == kLanes<T>;
  const int64_t start = first_output * band.step - band.before;
  const LineKernels<T>& lines_of = line_kernels<T>();
  for (int64_t i = begin; i < end; ++i)
    for (int64_t row = 0, c = band.read[i]; row < band.rows; ++row) {
      const int64_t y = start + row;
      const bool inside = y >= 0 && y < band.height;
      const T* from = block + (c * band.height + y) * band.width * kLanes<T>;
      T* to = scratch + (c * band.plane.lines + row * band.plane.pitch) * kLanes<T>;
      const int64_t lines = straight ? band.width : 1;
      for (int64_t x = 0; x < band.width; x += lines) {
        T* at = to + band.column[x] * kLanes<T>;
        if (!inside)
          std::memset(at, 0, lines * kLineBytes);
        else if (whole)
          lines_of.copy(from + x * kLanes<T>, lines, at);
        else
          lines_of.copy_valid(from + x * kLanes<T>, lines, valid, at);
      }
    }
}

// The work of a pass whose outputs do not depend on each other: (block, band) pairs, and parts of the rows of
// the weight where there are fewer pairs than threads.
template <typename T>
class BandWork {
 public:
  BandWork(const Band& band, const Index& index, const Tensor& source)
      : band_(band),
        source_(in_ptr<T>(source)),
        block_size_(band.channels * band.height * band.width * kLanes<T>),
        threads_(torch::stable::get_num_threads()) {
    const int64_t pairs = source.size(0) * band.count();
    bounds_ = equal_work(index, std::max<int64_t>(1, threads_ / pairs));
    items_ = pairs * parts();
    threads_ = std::min(threads_, items_);
    scratch_ = torch::stable::new_zeros(source, {threads_ * band.template size<T>()});
  }

  // Calls body(block, band, scratch, first row, last row).
  template <typename Body>
  void run(const Body& body) const {
    torch::stable::parallel_for(0, threads_, 1, [&](int64_t begin, int64_t end) {
      for (int64_t thread = begin; thread < end; ++thread) share(thread, body);
    });
  }

 private:
  int64_t parts() const { return static_cast<int64_t>(bounds_.size()) - 1; }

  template <typename Body>
  void share(int64_t thread, const Body& body) const {
    T* scratch = out_ptr<T>(scratch_) + thread * band_.template size<T>();
    int64_t copied = -1;
    for (int64_t item = thread * items_ / threads_; item < (thread + 1) * items_ / threads_; ++item) {
      const int64_t pair = item / parts(), part = item % parts();
      const int64_t block = pair / band_.count(), band = pair % band_.count();
      if (pair != copied)
        copy_band(band_, source_ + block * block_size_, band_.first(band), kLanes<T>, 0,
                  static_cast<int64_t>(band_.read.size()), scratch);
      copied = pair;
      body(block, band, scratch, bounds_[part], bounds_[part + 1]);
    }
  }

  const Band& band_;
  const T* source_;
  int64_t block_size_, threads_, items_;
  std::vector<int64_t> bounds_;
  Tensor scratch_;
};

}  // namespace fedsparse
