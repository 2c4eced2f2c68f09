// The index arithmetic of `unpack` and `gather`, for the device and for the host.
//
// Every function says what ONE thread of ONE block does; the kernels (unpack.cu) only supply blockIdx,
// threadIdx and the barriers between the phases. So a test compiles this file for the host, loops over the
// grid and compares with the reference, and what it proves about the arithmetic holds for the device.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FEDSPARSE_HD __host__ __device__ inline
#else
#define FEDSPARSE_HD inline
#endif

namespace fedsparse {

struct alignas(16) Vector16 {
  uint32_t lane[4];
};

constexpr int kUnpackThreads = 128;
constexpr int kUnpackTileBytes = 4096;
static_assert(kUnpackTileBytes % (kUnpackThreads * sizeof(Vector16)) == 0,
              "Every thread must store the same number of 16-byte vectors of a full tile.");

// Elements of a tile; a tile is a run of one row, so a row of any length is covered and no tile spans two
// rows.
template <typename Word>
constexpr int kUnpackTile = kUnpackTileBytes / static_cast<int>(sizeof(Word));

struct TileSpan {
  int row;
  int begin;  // first column of the tile
  int count;  // columns of the tile inside the row
};

FEDSPARSE_HD int tiles_per_row(int row_len, int tile) { return (row_len + tile - 1) / tile; }

FEDSPARSE_HD TileSpan tile_span(int block, int row_len, int tile) {
  const int per_row = tiles_per_row(row_len, tile);
  const int row = block / per_row;
  const int begin = (block - row * per_row) * tile;
  const int left = row_len - begin;
  return {row, begin, left < tile ? left : tile};
}

// First position in [begin, end) of sorted `cols` whose column is at least `column`; `end` if there is none.
FEDSPARSE_HD int lower_bound(const int32_t* cols, int begin, int end, int column) {
  while (begin < end) {
    const int middle = begin + (end - begin) / 2;
    if (cols[middle] < column) {
      begin = middle + 1;
    } else {
      end = middle;
    }
  }
  return begin;
}

// The list of entry `j`: the last one that starts at or before it, which steps over the empty ones in
// between.
FEDSPARSE_HD int list_of(const int32_t* indptr, int lists, int j) {
  int begin = 0;
  int end = lists;
  while (end - begin > 1) {
    const int middle = begin + (end - begin) / 2;
    if (indptr[middle] <= j) {
      begin = middle;
    } else {
      end = middle;
    }
  }
  return begin;
}

FEDSPARSE_HD void unpack_clear(Vector16* tile, int thread) {
  constexpr int kVectors = kUnpackTileBytes / static_cast<int>(sizeof(Vector16));
  for (int v = thread; v < kVectors; v += kUnpackThreads) tile[v] = Vector16{{0, 0, 0, 0}};
}

// Columns outside the tile are never written, so a broken topology can spoil values but not memory.
template <typename Word>
FEDSPARSE_HD void unpack_scatter(const Word* values, const int32_t* indptr, const int32_t* cols,
                                 int granularity, TileSpan span, Word* tile, int thread) {
  const int list = span.row / granularity;
  const int start = indptr[list];
  const int end = indptr[list + 1];
  const Word* row = values + start * granularity + span.row % granularity * (end - start);
  for (int j = lower_bound(cols, start, end, span.begin) + thread; j < end; j += kUnpackThreads) {
    const int column = cols[j] - span.begin;
    if (column >= span.count) break;
    tile[column] = row[j - start];
  }
}

// Neighbouring threads store neighbouring addresses: 16 bytes each where every row starts on a 16-byte
// boundary, one element each where it does not (27 columns of a first layer).
template <typename Word>
FEDSPARSE_HD void unpack_store(const Vector16* tile, TileSpan span, int row_len, bool aligned, Word* dense,
                               int thread) {
  constexpr int kPerVector = static_cast<int>(sizeof(Vector16) / sizeof(Word));
  Word* out = dense + static_cast<int64_t>(span.row) * row_len + span.begin;
  if (aligned) {
    Vector16* vectors = reinterpret_cast<Vector16*>(out);
    for (int v = thread; v < span.count / kPerVector; v += kUnpackThreads) vectors[v] = tile[v];
  } else {
    const Word* words = reinterpret_cast<const Word*>(tile);
    for (int c = thread; c < span.count; c += kUnpackThreads) out[c] = words[c];
  }
}

// A row is a whole number of 16-byte vectors: then so is every tile, the last one of a row too.
template <typename Word>
FEDSPARSE_HD bool rows_aligned(int row_len) {
  return (static_cast<int64_t>(row_len) * static_cast<int64_t>(sizeof(Word))) % sizeof(Vector16) == 0;
}

template <typename Word>
FEDSPARSE_HD void gather_one(const Word* dense, const int32_t* indptr, const int32_t* cols, int granularity,
                             int rows, int row_len, int j, Word* values) {
  const int list = list_of(indptr, rows / granularity, j / granularity);
  const int start = indptr[list];
  const int count = indptr[list + 1] - start;
  const int within = j - start * granularity;
  const int row = list * granularity + within / count;
  values[j] = dense[static_cast<int64_t>(row) * row_len + cols[start + within % count]];
}

}  // namespace fedsparse
