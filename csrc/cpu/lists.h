// The active weights of one pass over blocked tensors, as the kernels read them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <vector>

#include "check.h"
#include "isa.h"

namespace fedsparse {

// A topology's own arrays: columns of groups of rows, or of the rows of the transpose, whose values stand at
// `perm`.  Values are in the order of rows.
struct Index {
  Tensor owner[3];
  int64_t rows, nnz;
  int64_t group;  // rows that share one list of columns
  int64_t strip;  // V, so that rows sV to sV + V - 1 have the same columns; 1 where they differ
  int64_t width;  // columns of the weight
  const int32_t *starts, *columns, *perm;

  int64_t lists() const { return rows / group; }
  int64_t count(int64_t row) const { return starts[row / group + 1] - starts[row / group]; }
  const int32_t* cols(int64_t row) const { return columns + starts[row / group]; }
  // Position of the row's first entry among the values, or in `perm`.
  int64_t first(int64_t row) const {
    const int64_t list = row / group, r = row % group;
    return starts[list] * group + (r ? r * count(row) : 0);
  }
};

// Checks dtypes and sizes, and that columns stay inside [0, width) and `perm` inside the values: nothing the
// kernels read can be out of bounds.
Index checked_index(const char* op, const Tensor& indptr, const Tensor& cols, int64_t group, int64_t width,
                    const Tensor* perm = nullptr);

// The transpose of a weight with `taps` columns a channel: input channels are its rows, n * taps + tap its
// columns, `perm` says where its values stand.
Index transposed(const Index& index, int64_t taps);

// The arrays of a gradient to the input: of the weight, and of its transpose where it is kept.
struct Transposable {
  Tensor indptr, cols;
  std::optional<Tensor> t_indptr, t_cols, t_perm;
  int64_t group, channels;

  Index rows(const char* op, int64_t taps) const {
    return checked_index(op, indptr, cols, group, channels * taps);
  }
  Index columns(const char* op, int64_t taps) const;
};

// Channels in runs of `channels`, `count` of them; one channel is `stride` elements of the input.
struct ChannelBlocks {
  int64_t stride, channels, count;
};

// So many channels at a time that the lines of one tile stay in the first-level cache, or in the second where
// the rows are too short for that; `lines` is how many lines of one channel a tile reads, `phases` among
// how many passes the columns are shared out.
ChannelBlocks channel_blocks(const Index& index, int64_t channels, int64_t stride, int64_t lines,
                             int64_t phases = 1);

// Taps of all rows; those whose table entry is negative are left out.
template <typename T>
struct TapLists {
  Tensor begin, taps;
  int64_t count;

  Blocks blocks() const { return {in_ptr<int32_t>(begin), count}; }
  const Tap<T>* data() const { return in_ptr<Tap<T>>(taps); }
};

// table[col] is the offset in elements of the input line that column `col` reads.
template <typename T>
TapLists<T> tap_lists(const Index& index, const T* values, const std::vector<int32_t>& table,
                      const ChannelBlocks& plan);

// The same offsets alone, for the gradient at the active weights.
struct OffsetLists {
  Tensor begin, offsets;
  int64_t count;

  Blocks blocks() const { return {in_ptr<int32_t>(begin), count}; }
  const int32_t* data() const { return in_ptr<int32_t>(offsets); }
};

OffsetLists offset_lists(const Index& index, const std::vector<int32_t>& table, const ChannelBlocks& plan);

// Input channels that some entry reads, in order: of a weight with `taps` columns a channel.
std::vector<int32_t> read_channels(const Index& index, int64_t taps);

// Cuts the rows into at most `parts` runs of whole strips and about equal work; returns their bounds.
std::vector<int64_t> equal_work(const Index& index, int64_t parts);

// Calls body(part, first row, last row) for the runs, on torch's threads.
template <typename Body>
void over_rows(const Index& index, const Body& body) {
  const std::vector<int64_t> bounds = equal_work(index, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, static_cast<int64_t>(bounds.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, bounds[part], bounds[part + 1]);
  });
}

}  // namespace fedsparse
