// The active weights of one pass over blocked tensors, as the kernels read them.
#pragma once

#include <cstdint>
#include <vector>

#include "check.h"
#include "isa.h"

namespace fedsparse {

// A topology's own arrays: the rows of the weight, or of its transpose with `perm`.
struct Index {
  Tensor indptr, cols;
  const Tensor* perm = nullptr;

  int64_t rows() const { return indptr.size(0) - 1; }
  int64_t nnz() const { return cols.size(0); }
  const int32_t* starts() const { return in_ptr<int32_t>(indptr); }
};

// Checks dtypes, sizes, and that the lists stay inside [0, width): nothing the kernels read can be out of
// bounds.
Index checked_index(const char* op, const Tensor& indptr, const Tensor& cols, int64_t width);
void require_perm(const char* op, const Index& index, const Tensor& perm);

// Taps of all rows; those whose table entry is negative are left out.
template <typename T>
struct TapLists {
  Tensor indptr, taps;

  const int32_t* starts() const { return in_ptr<int32_t>(indptr); }
  const Tap<T>* data() const { return in_ptr<Tap<T>>(taps); }
};

// table[col] is the offset in elements of the input line that column `col` reads.
template <typename T>
TapLists<T> tap_lists(const Index& index, const T* values, const std::vector<int32_t>& table);

// The same offsets alone, for the gradient at the active weights; int32 [nnz].
Tensor offset_list(const Index& index, const std::vector<int32_t>& table);

// Cuts the rows into at most `parts` runs of about equal work; returns their bounds.
std::vector<int64_t> equal_work(const int32_t* starts, int64_t rows, int64_t parts);

// Calls body(part, first row, last row) for the runs, on torch's threads.
template <typename Body>
void over_rows(const int32_t* starts, int64_t rows, const Body& body) {
  const std::vector<int64_t> bounds = equal_work(starts, rows, torch::stable::get_num_threads());
  torch::stable::parallel_for(0, static_cast<int64_t>(bounds.size()) - 1, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) body(part, bounds[part], bounds[part + 1]);
  });
}

}  // namespace fedsparse
