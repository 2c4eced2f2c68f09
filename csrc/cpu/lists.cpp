#include "lists.h"

#include <algorithm>

namespace fedsparse {
namespace {

// Rows below which a second thread does not pay.
constexpr int64_t kRowGrain = 64;

template <typename T>
void fill_row(const Index& index, const T* values, const std::vector<int32_t>& table, int64_t row,
              Tap<T>* out) {
  const int32_t* cols = in_ptr<int32_t>(index.cols);
  const int32_t* perm = index.perm ? in_ptr<int32_t>(*index.perm) : nullptr;
  for (int32_t j = index.starts()[row]; j < index.starts()[row + 1]; ++j) {
    const int32_t offset = table[cols[j]];
    if (offset < 0) continue;
    *out++ = {offset, values[perm ? perm[j] : j]};
  }
}

// How many taps each row keeps, as running starts.
Tensor kept_starts(const Index& index, const std::vector<int32_t>& table) {
  Tensor indptr = torch::stable::new_empty(index.indptr, {index.rows() + 1});
  const int32_t* cols = in_ptr<int32_t>(index.cols);
  int32_t* kept = out_ptr<int32_t>(indptr);
  kept[0] = 0;
  for (int64_t row = 0; row < index.rows(); ++row) {
    int32_t count = 0;
    for (int32_t j = index.starts()[row]; j < index.starts()[row + 1]; ++j) count += table[cols[j]] >= 0;
    kept[row + 1] = kept[row] + count;
  }
  return indptr;
}

bool keeps_all(const std::vector<int32_t>& table) {
  return std::all_of(table.begin(), table.end(), [](int32_t offset) { return offset >= 0; });
}

}  // namespace

Index checked_index(const char* op, const Tensor& indptr, const Tensor& cols, int64_t width) {
  Index index{checked_indices(op, "indptr", indptr), checked_indices(op, "cols", cols)};
  require(indptr.size(0) >= 1, op, ": indptr must have at least one entry.");
  const int32_t* starts = index.starts();
  require(starts[0] == 0 && starts[index.rows()] == index.nnz(), op, ": indptr must run from 0 to ",
          index.nnz(), ".");
  require(std::is_sorted(starts, starts + index.rows() + 1), op, ": indptr must not fall.");
  const int32_t* col = in_ptr<int32_t>(index.cols);
  uint32_t largest = 0;
  for (int64_t j = 0; j < index.nnz(); ++j) largest = std::max(largest, static_cast<uint32_t>(col[j]));
  require(index.nnz() == 0 || largest < width, op, ": cols holds an index outside 0 to ", width - 1, ".");
  return index;
}

void require_perm(const char* op, const Index& index, const Tensor& perm) {
  require(perm.size(0) == index.nnz(), op, ": t_perm must have ", index.nnz(), " entries.");
  const int32_t* place = in_ptr<int32_t>(perm);
  uint32_t largest = 0;
  for (int64_t j = 0; j < index.nnz(); ++j) largest = std::max(largest, static_cast<uint32_t>(place[j]));
  require(index.nnz() == 0 || largest < index.nnz(), op, ": t_perm holds an index outside 0 to ",
          index.nnz() - 1, ".");
}

template <typename T>
TapLists<T> tap_lists(const Index& index, const T* values, const std::vector<int32_t>& table) {
  const Tensor indptr = keeps_all(table) ? index.indptr : kept_starts(index, table);
  const int32_t* starts = in_ptr<int32_t>(indptr);
  const int64_t words = starts[index.rows()] * static_cast<int64_t>(sizeof(Tap<T>) / sizeof(int32_t));
  Tensor taps = torch::stable::new_empty(index.indptr, {words});
  torch::stable::parallel_for(0, index.rows(), kRowGrain, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row)
      fill_row(index, values, table, row, out_ptr<Tap<T>>(taps) + starts[row]);
  });
  return {indptr, taps};
}

template TapLists<float> tap_lists(const Index&, const float*, const std::vector<int32_t>&);
template TapLists<double> tap_lists(const Index&, const double*, const std::vector<int32_t>&);

Tensor offset_list(const Index& index, const std::vector<int32_t>& table) {
  Tensor offsets = torch::stable::new_empty(index.indptr, {index.nnz()});
  const int32_t* cols = in_ptr<int32_t>(index.cols);
  int32_t* out = out_ptr<int32_t>(offsets);
  for (int64_t j = 0; j < index.nnz(); ++j) out[j] = table[cols[j]];
  return offsets;
}

std::vector<int64_t> equal_work(const int32_t* starts, int64_t rows, int64_t parts) {
  // A row costs its active weights plus what it takes to write it.
  constexpr int64_t kWrite = 4;
  const auto work = [&](int64_t row) { return starts[row] + kWrite * row; };
  std::vector<int64_t> bounds{0};
  for (int64_t part = 1; part <= parts && bounds.back() < rows; ++part) {
    int64_t row = bounds.back() + 1;
    while (row < rows && (part == parts || work(row) * parts < work(rows) * part)) ++row;
    bounds.push_back(row);
  }
  return bounds;
}

}  // namespace fedsparse
