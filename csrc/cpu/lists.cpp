#include "lists.h"

#include <unistd.h>

#include <algorithm>

#include "strips.h"

namespace fedsparse {
namespace {

// Rows below which a second thread does not pay.
constexpr int64_t kRowGrain = 64;

// The shortest run of taps that pays for taking the sums of a tile out of memory and putting them back.
constexpr int64_t kShortest = 12;

int64_t cache_bytes(int name, int64_t usual) {
  const long found = sysconf(name);
  return found > 0 ? found : usual;
}

// First- and second-level cache that the lines of a tile may take: what is left beside taps and sums.
int64_t near_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  static const int64_t bytes = cache_bytes(_SC_LEVEL1_DCACHE_SIZE, 32 * 1024) * 5 / 8;
  return bytes;
#else
  return 20 * 1024;
#endif
}

int64_t far_bytes() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = cache_bytes(_SC_LEVEL2_CACHE_SIZE, 512 * 1024) / 2;
  return bytes;
#else
  return 256 * 1024;
#endif
}

// Mean length of the runs into which blocks of so many columns cut the rows; empty runs do not count, since
// the kernels skip them.  Some rows stand for all.
int64_t run_length(const Index& index, int64_t columns) {
  constexpr int64_t kRows = 64;
  const int64_t step = std::max<int64_t>(1, index.rows / kRows);
  int64_t entries = 0, runs = 0;
  for (int64_t row = 0; row < index.rows; row += step) {
    int64_t limit = 0;
    for (int32_t j = index.starts[row]; j < index.starts[row + 1]; ++j, ++entries)
      if (index.cols[j] >= limit) {
        ++runs;
        limit = (index.cols[j] / columns + 1) * columns;
      }
  }
  return runs ? entries / runs : 0;
}

// begin[b] = first of the entries [at, end) whose offset lies in block b or later; offset_of(j) rises with j.
template <typename OffsetOf>
void mark_blocks(const ChannelBlocks& plan, int32_t at, int32_t end, int32_t* begin,
                 const OffsetOf& offset_of) {
  begin[0] = at;
  for (int64_t block = 1; block < plan.count; ++block) {
    const int64_t limit = block * plan.stride * plan.channels;
    while (at < end && offset_of(at) < limit) ++at;
    begin[block] = at;
  }
  begin[plan.count] = end;
}

Tensor empty_marks(const Index& index, const ChannelBlocks& plan) {
  return torch::stable::new_empty(index.owner[0], {index.rows * (plan.count + 1)});
}

// The taps of one row that the table does not drop.
template <typename T>
void fill_some(const Index& index, const T* values, const std::vector<int32_t>& table, int64_t row,
               Tap<T>* taps) {
  for (int32_t j = index.starts[row]; j < index.starts[row + 1]; ++j) {
    const int32_t offset = table[index.cols[j]];
    if (offset >= 0) *taps++ = {offset, values[index.perm ? index.perm[j] : j]};
  }
}

template <typename T>
void fill_all(const Index& index, const T* values, const std::vector<int32_t>& table, int64_t row,
              Tap<T>* taps) {
  const int32_t first = index.starts[row];
  kernels<T>().fill_taps(index.cols + first, table.data(), index.perm ? values : values + first,
                         index.perm ? index.perm + first : nullptr, index.starts[row + 1] - first, taps);
}

// How many taps each row keeps, as running starts.
Tensor kept_starts(const Index& index, const std::vector<int32_t>& table) {
  Tensor indptr = torch::stable::new_empty(index.owner[0], {index.rows + 1});
  int32_t* kept = out_ptr<int32_t>(indptr);
  kept[0] = 0;
  for (int64_t row = 0; row < index.rows; ++row) {
    int32_t count = 0;
    for (int32_t j = index.starts[row]; j < index.starts[row + 1]; ++j) count += table[index.cols[j]] >= 0;
    kept[row + 1] = kept[row] + count;
  }
  return indptr;
}

bool keeps_all(const std::vector<int32_t>& table) {
  return std::all_of(table.begin(), table.end(), [](int32_t offset) { return offset >= 0; });
}

}  // namespace

namespace {

// Whether rows row to row + count - 1 have the same columns.
bool same_columns(const Index& index, int64_t row, int64_t count) {
  const int32_t *first = index.cols + index.starts[row], *last = index.cols + index.starts[row + 1];
  for (int64_t other = row + 1; other < row + count; ++other) {
    const int32_t *begin = index.cols + index.starts[other], *end = index.cols + index.starts[other + 1];
    if (!std::equal(first, last, begin, end)) return false;
  }
  return true;
}

// The longest strips that the kernels take; a weight of single weights differs in its first rows.
int64_t strip_rows(const Index& index) {
  constexpr int64_t kLongest = 32;
  if (index.nnz == 0) return 1;
  int64_t found = 1;
  for (int64_t rows = kQuad; rows <= kLongest && index.rows % rows == 0; rows *= 2) {
    for (int64_t row = 0; row < index.rows; row += rows)
      if (!same_columns(index, row, rows)) return found;
    found = rows;
  }
  return found;
}

bool all_below(const int32_t* entries, int64_t count, int64_t limit) {
  uint32_t largest = 0;
  for (int64_t j = 0; j < count; ++j) largest = std::max(largest, static_cast<uint32_t>(entries[j]));
  return count == 0 || largest < limit;
}

}  // namespace

Index checked_index(const char* op, const Tensor& indptr, const Tensor& cols, int64_t width,
                    const Tensor* perm) {
  Index index{{checked_indices(op, "indptr", indptr), checked_indices(op, "cols", cols)},
              0,
              0,
              1,
              width,
              nullptr,
              nullptr,
              nullptr};
  require(indptr.size(0) >= 1, op, ": indptr must have at least one entry.");
  index.rows = indptr.size(0) - 1;
  index.nnz = cols.size(0);
  index.starts = in_ptr<int32_t>(index.owner[0]);
  index.cols = in_ptr<int32_t>(index.owner[1]);
  require(index.starts[0] == 0 && index.starts[index.rows] == index.nnz, op, ": indptr must run from 0 to ",
          index.nnz, ".");
  require(std::is_sorted(index.starts, index.starts + index.rows + 1), op, ": indptr must not fall.");
  require(all_below(index.cols, index.nnz, width), op, ": cols holds an index outside 0 to ", width - 1, ".");
  index.strip = strip_rows(index);
  if (perm == nullptr) return index;
  index.owner[2] = checked_indices(op, "t_perm", *perm);
  index.perm = in_ptr<int32_t>(index.owner[2]);
  require(perm->size(0) == index.nnz, op, ": t_perm must have ", index.nnz, " entries.");
  require(all_below(index.perm, index.nnz, index.nnz), op, ": t_perm holds an index outside 0 to ",
          index.nnz - 1, ".");
  return index;
}

ChannelBlocks channel_blocks(const Index& index, int64_t channels, int64_t stride, int64_t lines,
                             int64_t phases) {
  constexpr int64_t kLineBytes = 64;
  for (const int64_t budget : {near_bytes(), far_bytes()}) {
    const int64_t width = std::max<int64_t>(1, budget / (lines * kLineBytes));
    const int64_t count = (channels + width - 1) / width;
    if (count <= 1 || run_length(index, index.width / channels * width) >= kShortest * phases)
      return {stride, width, std::max<int64_t>(1, count)};
  }
  return {stride, channels, 1};
}

template <typename T>
TapLists<T> tap_lists(const Index& index, const T* values, const std::vector<int32_t>& table,
                      const ChannelBlocks& plan) {
  const bool all = keeps_all(table);
  const Tensor indptr = all ? index.owner[0] : kept_starts(index, table);
  const int32_t* starts = in_ptr<int32_t>(indptr);
  const int64_t words = starts[index.rows] * static_cast<int64_t>(sizeof(Tap<T>) / sizeof(int32_t));
  TapLists<T> lists{empty_marks(index, plan), torch::stable::new_empty(index.owner[0], {words}), plan.count};
  Tap<T>* taps = out_ptr<Tap<T>>(lists.taps);
  int32_t* marks = out_ptr<int32_t>(lists.begin);
  torch::stable::parallel_for(0, index.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      (all ? fill_all<T> : fill_some<T>)(index, values, table, row, taps + starts[row]);
      mark_blocks(plan, starts[row], starts[row + 1], marks + row * (plan.count + 1),
                  [&](int32_t j) { return taps[j].offset; });
    }
  });
  return lists;
}

template TapLists<float> tap_lists(const Index&, const float*, const std::vector<int32_t>&,
                                   const ChannelBlocks&);
template TapLists<double> tap_lists(const Index&, const double*, const std::vector<int32_t>&,
                                    const ChannelBlocks&);

OffsetLists offset_lists(const Index& index, const std::vector<int32_t>& table, const ChannelBlocks& plan) {
  OffsetLists lists{empty_marks(index, plan), torch::stable::new_empty(index.owner[0], {index.nnz}),
                    plan.count};
  int32_t* offsets = out_ptr<int32_t>(lists.offsets);
  int32_t* marks = out_ptr<int32_t>(lists.begin);
  torch::stable::parallel_for(0, index.rows, kRowGrain, [&](int64_t begin, int64_t end) {
    const int32_t first = index.starts[begin];
    chosen_isa().fill_offsets(index.cols + first, table.data(), index.starts[end] - first, offsets + first);
    for (int64_t row = begin; row < end; ++row)
      mark_blocks(plan, index.starts[row], index.starts[row + 1], marks + row * (plan.count + 1),
                  [&](int32_t j) { return offsets[j]; });
  });
  return lists;
}

std::vector<int64_t> equal_work(const Index& index, int64_t parts) {
  // A row costs its active weights plus what it takes to write it.
  constexpr int64_t kWrite = 4;
  const int64_t rows = index.rows;
  const auto work = [&](int64_t row) { return index.starts[row] + kWrite * row; };
  std::vector<int64_t> bounds{0};
  for (int64_t part = 1; part <= parts && bounds.back() < rows; ++part) {
    int64_t row = bounds.back() + index.strip;
    while (row < rows && (part == parts || work(row) * parts < work(rows) * part)) row += index.strip;
    bounds.push_back(row);
  }
  return bounds;
}

}  // namespace fedsparse
