// Runs the device's index arithmetic of unpack and gather on the host: all threads of a block finish a phase
// before the next begins, as the barriers make them; the order of blocks and threads is given by a stride
// prime to their number, so that a result which depends on the order shows.
#include <vector>

#include "unpack_index.h"

namespace {

using namespace fedsparse;

template <typename Word>
void unpack(const Word* values, const int32_t* indptr, const int32_t* cols, int granularity, int rows,
            int row_len, int stride, Word* dense) {
  const int blocks = rows * tiles_per_row(row_len, kUnpackTile<Word>);
  const bool aligned = rows_aligned<Word>(row_len);
  for (int64_t b = 0; b < blocks; ++b) {
    std::vector<Vector16> tile(kUnpackTileBytes / sizeof(Vector16), Vector16{{~0u, ~0u, ~0u, ~0u}});
    const TileSpan span = tile_span(blocks - 1 - static_cast<int>(b), row_len, kUnpackTile<Word>);
    const auto all_threads = [&](auto phase) {
      for (int t = 0; t < kUnpackThreads; ++t) phase(t * stride % kUnpackThreads);
    };
    all_threads([&](int t) { unpack_clear(tile.data(), t); });
    all_threads([&](int t) {
      unpack_scatter<Word>(values, indptr, cols, granularity, span, reinterpret_cast<Word*>(tile.data()), t);
    });
    all_threads([&](int t) { unpack_store<Word>(tile.data(), span, row_len, aligned, dense, t); });
  }
}

template <typename Word>
void gather(const Word* dense, const int32_t* indptr, const int32_t* cols, int granularity, int rows,
            int row_len, Word* values) {
  for (int j = indptr[rows / granularity] * granularity - 1; j >= 0; --j)
    gather_one<Word>(dense, indptr, cols, granularity, rows, row_len, j, values);
}

}  // namespace

#define EXPORT(bits)                                                                                         \
  extern "C" void unpack_##bits(const uint##bits##_t* values, const int32_t* indptr, const int32_t* cols,    \
                                int granularity, int rows, int row_len, int stride, uint##bits##_t* dense) { \
    unpack(values, indptr, cols, granularity, rows, row_len, stride, dense);                                 \
  }                                                                                                          \
  extern "C" void gather_##bits(const uint##bits##_t* dense, const int32_t* indptr, const int32_t* cols,     \
                                int granularity, int rows, int row_len, uint##bits##_t* values) {            \
    gather(dense, indptr, cols, granularity, rows, row_len, values);                                         \
  }
EXPORT(16)
EXPORT(32)
EXPORT(64)
