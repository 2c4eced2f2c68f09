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
    const int32_t *col = index.cols(row), *end = col + index.count(row);
    for (; col < end; ++col, ++entries)
      if (*col >= limit) {
        ++runs;
        limit = (*col / columns + 1) * columns;
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
  const int32_t* const cols = index.cols(row);
  const int64_t first = index.first(row), count = index.count(row);
  for (int64_t e = 0; e < count; ++e) {
    const int32_t offset = table[cols[e]];
    if (offset >= 0) *taps++ = {offset, values[index.perm ? index.perm[first + e] : first + e]};
  }
}

template <typename T>
void fill_all(const Index& index, const T* values, const std::vector<int32_t>& table, int64_t row,
              Tap<T>* taps) {
  const int64_t first = index.first(row);
  kernels<T>().fill_taps(index.cols(row), table.data(), index.perm ? values : values + first,
                         index.perm ? index.perm + first : nullptr, index.count(row), taps);
}

// How many taps each row keeps, as running starts.
Tensor kept_starts(const Index& index, const std::vector<int32_t>& table) {
  const bool all = std::all_of(table.begin(), table.end(), [](int32_t offset) { return offset >= 0; });
  if (all && index.group == 1) return index.owner[0];
  Tensor indptr = torch::stable::new_empty(index.owner[0], {index.rows + 1});
  int32_t* kept = out_ptr<int32_t>(indptr);
  kept[0] = 0;
  for (int64_t row = 0; row < index.rows; ++row) {
    const int32_t* const cols = index.cols(row);
    const auto keeps = [&](int32_t col) { return table[col] >= 0; };
    kept[row + 1] =
        kept[row] +
        static_cast<int32_t>(all ? index.count(row) : std::count_if(cols, cols + index.count(row), keeps));
  }
  return indptr;
}

// Whether the lists of rows row to row + count - 1 are the same.
bool same_columns(const Index& index, int64_t row, int64_t count) {
  const int32_t *first = index.cols(row), *last = first + index.count(row);
  for (int64_t other = row + index.group; other < row + count; other += index.group) {
    const int32_t* const begin = index.cols(other);
    if (!std::equal(first, last, begin, begin + index.count(other))) return false;
  }
  return true;
}

// The longest strips that the kernels take; a weight of single weights differs in its first rows.
int64_t strip_rows(const Index& index) {
  constexpr int64_t kLongest = 32;
  if (index.nnz == 0) return 1;
  int64_t found = 1;
  for (int64_t rows = kQuad; rows <= kLongest && index.rows % rows == 0; rows *= 2) {
    if (index.group % rows != 0) {
      if (rows % index.group != 0) return found;
      for (int64_t row = 0; row < index.rows; row += rows)
        if (!same_columns(index, row, rows)) return found;
    }
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

Tensor checked_columns(const char* op, const char* name, const Tensor& tensor) {
  if (tensor.scalar_type() != ScalarType::Short) return checked_indices(op, name, tensor);
  require_dims(op, name, tensor, 1);
  const Tensor narrow = torch::stable::contiguous(tensor);
  const Tensor wide = torch::stable::new_empty(narrow, {narrow.numel()}, ScalarType::Int);
  std::copy_n(in_ptr<int16_t>(narrow), narrow.numel(), out_ptr<int32_t>(wide));
  return wide;
}

Index checked_index(const char* op, const Tensor& indptr, const Tensor& cols, int64_t group, int64_t width,
                    const Tensor* perm) {
  require(group >= 1, op, ": granularity must be at least 1, not ", group, ".");
  Index index{{checked_indices(op, "indptr", indptr), checked_columns(op, "cols", cols)},
              0,
              0,
              group,
              1,
              width,
              nullptr,
              nullptr,
              nullptr};
  require(indptr.size(0) >= 1, op, ": indptr must have at least one entry.");
  const int64_t lists = indptr.size(0) - 1, entries = cols.size(0);
  index.rows = lists * group;
  index.nnz = entries * group;
  index.starts = in_ptr<int32_t>(index.owner[0]);
  index.columns = in_ptr<int32_t>(index.owner[1]);
  require(index.starts[0] == 0 && index.starts[lists] == entries, op, ": indptr must run from 0 to ", entries,
          ".");
  require(std::is_sorted(index.starts, index.starts + lists + 1), op, ": indptr must not fall.");
  require(all_below(index.columns, entries, width), op, ": cols holds an index outside 0 to ", width - 1,
          ".");
  index.strip = strip_rows(index);
  if (perm == nullptr) return index;
  index.owner[2] = checked_indices(op, "t_perm", *perm);
  index.perm = in_ptr<int32_t>(index.owner[2]);
  require(perm->size(0) == index.nnz, op, ": t_perm must have ", index.nnz, " entries.");
  require(all_below(index.perm, index.nnz, index.nnz), op, ": t_perm holds an index outside 0 to ",
          index.nnz - 1, ".");
  return index;
}

Index transposed(const Index& index, int64_t taps) {
  const int64_t channels = index.width / taps;
  const Tensor indptr = torch::stable::new_zeros(index.owner[0], {channels + 1});
  const Tensor cols = torch::stable::new_empty(index.owner[0], {index.nnz});
  const Tensor perm = torch::stable::new_empty(index.owner[0], {index.nnz});
  int32_t *const starts = out_ptr<int32_t>(indptr), *const col = out_ptr<int32_t>(cols),
                 *const at = out_ptr<int32_t>(perm);
  std::vector<int32_t> channel(index.width), tap(index.width);
  for (int64_t k = 0; k < index.width; ++k) {
    channel[k] = static_cast<int32_t>(k / taps);
    tap[k] = static_cast<int32_t>(k % taps);
  }
  for (int64_t j = 0; j < index.nnz / index.group; ++j)
    starts[channel[index.columns[j]] + 1] += static_cast<int32_t>(index.group);
  for (int64_t c = 0; c < channels; ++c) starts[c + 1] += starts[c];
  std::vector<int32_t> next(starts, starts + channels);
  for (int64_t row = 0; row < index.rows; ++row) {
    const int32_t *const entries = index.cols(row), count = static_cast<int32_t>(index.count(row));
    const auto first = static_cast<int32_t>(index.first(row)), base = static_cast<int32_t>(row * taps);
    for (int32_t e = 0; e < count; ++e) {
      const int32_t to = next[channel[entries[e]]]++;
      col[to] = base + tap[entries[e]];
      at[to] = first + e;
    }
  }
  Index found{{indptr, cols, perm}, channels, index.nnz, 1, 1, index.rows * taps, starts, col, at};
  found.strip = strip_rows(found);
  return found;
}

Index Transposable::columns(const char* op, int64_t taps) const {
  if (!t_indptr) return transposed(rows(op, taps), taps);
  require(t_cols && t_perm && group == 1, op,
          ": t_indptr, t_cols and t_perm must be given together, of single weights.");
  require(t_indptr->dim() == 1 && t_indptr->size(0) == channels + 1, op, ": t_indptr must have ",
          channels + 1, " entries.");
  require(t_cols->numel() == cols.numel(), op, ": t_cols must have ", cols.numel(), " entries.");
  return checked_index(op, *t_indptr, *t_cols, 1, (indptr.size(0) - 1) * taps, &*t_perm);
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
  const bool all = std::all_of(table.begin(), table.end(), [](int32_t offset) { return offset >= 0; });
  const Tensor indptr = kept_starts(index, table);
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
    for (int64_t row = begin; row < end; ++row) {
      const auto first = static_cast<int32_t>(index.first(row)),
                 count = static_cast<int32_t>(index.count(row));
      chosen_isa().fill_offsets(index.cols(row), table.data(), count, offsets + first);
      mark_blocks(plan, first, first + count, marks + row * (plan.count + 1),
                  [&](int32_t j) { return offsets[j]; });
    }
  });
  return lists;
}

std::vector<int32_t> read_channels(const Index& index, int64_t taps) {
  std::vector<char> seen(index.width / taps, 0);
  size_t count = 0;
  for (int64_t list = 0; list < index.lists() && count < seen.size(); ++list) {
    const int32_t *col = index.columns + index.starts[list], *end = index.columns + index.starts[list + 1];
    for (; col < end; ++col) {
      char& channel = seen[*col / taps];
      count += !channel;
      channel = 1;
    }
  }
  std::vector<int32_t> read;
  for (size_t c = 0; c < seen.size(); ++c)
    if (seen[c]) read.push_back(static_cast<int32_t>(c));
  return read;
}

std::vector<int64_t> equal_work(const Index& index, int64_t parts) {
  // A row costs its active weights plus what it takes to write it.
  constexpr int64_t kWrite = 4;
  const int64_t rows = index.rows;
  const auto work = [&](int64_t row) { return index.first(row) + kWrite * row; };
  const int64_t all = index.nnz + kWrite * rows;
  std::vector<int64_t> bounds{0};
  for (int64_t part = 1; part <= parts && bounds.back() < rows; ++part) {
    int64_t row = bounds.back() + index.strip;
    while (row < rows && (part == parts || work(row) * parts < all * part)) row += index.strip;
    bounds.push_back(row);
  }
  return bounds;
}

}  // namespace fedsparse
