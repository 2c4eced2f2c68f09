// Linear ops as gathers and samples: the blocks of images of one chunk take the place of an image's rows of
// pixels.
#pragma once

#include "blocked.h"
#include "rows.h"

namespace fedsparse {

// Blocks of images that are in memory at a time.
inline constexpr int64_t kChunkBlocks = 16;

// Element offset of each column's line.
template <typename T>
std::vector<int32_t> line_table(int64_t columns) {
  std::vector<int32_t> table(columns);
  for (int64_t c = 0; c < columns; ++c) table[c] = static_cast<int32_t>(c * kLanes<T>);
  return table;
}

// Part of a matrix [batch, columns] as blocks: lines [block][column].
template <typename T>
struct Matrix {
  T* data;
  int64_t batch, columns;

  Plane plane(int64_t block, int64_t width) const {
    return {columns, std::min(kLanes<T>, batch - block * kLanes<T>), width};
  }
  T* at(int64_t block, int64_t column) const { return data + block * kLanes<T> * columns + column; }
};

template <typename T>
void read_blocks(const Tensor& matrix, int64_t first, int64_t count, T* lines) {
  const Matrix<const T> source{in_ptr<T>(matrix), matrix.size(0), matrix.size(1)};
  const int64_t grain = move_grain(source.columns * kLanes<T>);
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      kernels<T>().to_lines(source.plane(first + i, source.columns), source.at(first + i, 0), nullptr,
                            lines + i * source.columns * kLanes<T>);
  });
}

// A tile reads one line of each block of images in the chunk.
template <typename T>
ChannelBlocks linear_blocks(const Index& index, int64_t columns, int64_t chunk) {
  return channel_blocks(index, columns, kLanes<T>, chunk);
}

// out[b, row] = bias[row] + sum over the row's taps of value * in[b, column]
template <typename T>
void gather_linear(const Index& index, const T* values, const T* bias, const Tensor& in, Tensor& out) {
  const int64_t rows = index.rows, blocks = blocks_of<T>(in.size(0)), chunk = std::min(kChunkBlocks, blocks);
  const GatherRows<T> weight(index, values, line_table<T>(in.size(1)),
                             linear_blocks<T>(index, in.size(1), chunk));
  const Matrix<T> target{out_ptr<T>(out), out.size(0), rows};
  const Tensor read = torch::stable::new_empty(in, {chunk * in.size(1) * kLanes<T>});
  const Tensor written = torch::stable::new_empty(in, {chunk * rows * kLanes<T>});
  Gather<T> g{
      bias, in_ptr<T>(read), in.size(1) * kLanes<T>, out_ptr<T>(written), kLanes<T>, rows * kLanes<T>, 0, 0,
      1};
  for (int64_t first = 0; first < blocks; first += chunk) {
    g.height = std::min(chunk, blocks - first);
    read_blocks(in, first, g.height, out_ptr<T>(read));
    over_rows(index, [&](int64_t, int64_t begin, int64_t end) {
      weight.run(g, begin, end);
      for (int64_t i = 0; i < g.height; ++i)
        kernels<T>().from_lines(target.plane(first + i, end - begin),
                                g.out + i * g.out_row + begin * kLanes<T>, target.at(first + i, begin));
    });
  }
}

}  // namespace fedsparse
