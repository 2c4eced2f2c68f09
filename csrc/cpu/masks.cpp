// What a change of the mask needs: the new lists of columns from the old ones, which weights both have, and
// the transpose.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <limits>
#include <tuple>

#include "lists.h"

namespace fedsparse {
namespace {

// Lists below which a second thread does not pay.
constexpr int64_t kListGrain = 64;

Tensor checked_longs(const char* op, const char* name, const Tensor& tensor) {
  require_dims(op, name, tensor, 1);
  require(tensor.scalar_type() == ScalarType::Long, op, ": ", name, " must be int64.");
  return torch::stable::contiguous(tensor);
}

// int32 columns in the type of `like`.
Tensor as_type_of(const Tensor& cols, const Tensor& like) {
  if (like.scalar_type() != ScalarType::Short) return cols;
  const Tensor narrow = torch::stable::new_empty(cols, {cols.numel()}, ScalarType::Short);
  const int32_t* const from = in_ptr<int32_t>(cols);
  std::transform(from, from + cols.numel(), out_ptr<int16_t>(narrow),
                 [](int32_t col) { return static_cast<int16_t>(col); });
  return narrow;
}

std::tuple<Tensor, Tensor> change_index(Tensor indptr, Tensor cols, int64_t width, Tensor dropped_in,
                                        Tensor grown_in) {
  const char* op = "change_index";
  const Index old = checked_index(op, indptr, cols, 1, width);
  const Tensor dropped = checked_longs(op, "dropped", dropped_in),
               grown = checked_longs(op, "grown", grown_in);
  const int64_t *drop = in_ptr<int64_t>(dropped), *const drop_end = drop + dropped.numel();
  require(std::is_sorted(drop, drop_end) && std::adjacent_find(drop, drop_end) == drop_end, op,
          ": dropped must be strictly increasing.");
  require(drop == drop_end || (drop[0] >= 0 && drop_end[-1] < old.nnz), op,
          ": dropped holds a position outside 0 to ", old.nnz - 1, ".");
  std::vector<int64_t> added(in_ptr<int64_t>(grown), in_ptr<int64_t>(grown) + grown.numel());
  std::sort(added.begin(), added.end());
  require(added.empty() || (added.front() >= 0 && added.back() < old.rows * width), op,
          ": grown holds a group outside 0 to ", old.rows * width - 1, ".");
  const int64_t count = old.nnz - dropped.numel() + grown.numel();
  const Tensor new_indptr = torch::stable::new_empty(old.owner[0], {old.rows + 1});
  const Tensor new_cols = torch::stable::new_empty(old.owner[0], {count});
  int32_t *const starts = out_ptr<int32_t>(new_indptr), *const first = out_ptr<int32_t>(new_cols),
                 *to = first;
  auto add = added.cbegin();
  starts[0] = 0;
  for (int64_t list = 0; list < old.rows; ++list) {
    int32_t* const begin = to;
    const int64_t base = list * width;
    for (int32_t j = old.starts[list]; j < old.starts[list + 1]; ++j) {
      for (; add != added.cend() && *add - base < old.columns[j]; ++add)
        *to++ = static_cast<int32_t>(*add - base);
      require(add == added.cend() || *add - base != old.columns[j], op, ": group ", base + old.columns[j],
              " is active already.");
      if (drop != drop_end && *drop == j)
        ++drop;
      else
        *to++ = old.columns[j];
    }
    for (; add != added.cend() && *add - base < width; ++add) *to++ = static_cast<int32_t>(*add - base);
    require(std::adjacent_find(begin, to) == to, op, ": grown holds a group twice.");
    starts[list + 1] = static_cast<int32_t>(to - first);
  }
  return {new_indptr, as_type_of(new_cols, cols)};
}

// Calls both(e, f) for the columns at entry e of the list of `a` and f of `b` that are equal.
template <typename Both>
void each_common(const Index& a, const Index& b, int64_t row, const Both& both) {
  const int32_t *const x = a.cols(row), *const y = b.cols(row);
  const int64_t n = a.count(row), m = b.count(row);
  for (int64_t e = 0, f = 0; e < n && f < m;) {
    const int32_t p = x[e], q = y[f];
    if (p == q) both(e, f);
    e += p <= q;
    f += q <= p;
  }
}

std::tuple<Tensor, Tensor> match_index(Tensor indptr, Tensor cols, Tensor new_indptr, Tensor new_cols,
                                       int64_t granularity) {
  const char* op = "match_index";
  constexpr int64_t kWidth = std::numeric_limits<int32_t>::max();
  const Index a = checked_index(op, indptr, cols, granularity, kWidth);
  const Index b = checked_index(op, new_indptr, new_cols, granularity, kWidth);
  require(a.rows == b.rows, op, ": both must have as many lists, not ", a.lists(), " and ", b.lists(), ".");
  // Where each list's pairs begin.
  std::vector<int64_t> begin(a.lists() + 1, 0);
  torch::stable::parallel_for(0, a.lists(), kListGrain, [&](int64_t first, int64_t last) {
    for (int64_t list = first; list < last; ++list)
      each_common(a, b, list * granularity, [&](int64_t, int64_t) { ++begin[list + 1]; });
  });
  for (int64_t list = 0; list < a.lists(); ++list) begin[list + 1] += begin[list];
  const int64_t count = begin.back() * granularity;
  const Tensor source = torch::stable::new_empty(indptr, {count}, ScalarType::Long);
  const Tensor target = torch::stable::new_empty(indptr, {count}, ScalarType::Long);
  torch::stable::parallel_for(0, a.lists(), kListGrain, [&](int64_t first, int64_t last) {
    for (int64_t row = first * granularity; row < last * granularity; ++row) {
      const int64_t list = row / granularity, pairs = begin[list + 1] - begin[list];
      int64_t at = begin[list] * granularity + row % granularity * pairs;
      const int64_t from = a.first(row), to = b.first(row);
      each_common(a, b, row, [&](int64_t e, int64_t f) {
        out_ptr<int64_t>(source)[at] = from + e;
        out_ptr<int64_t>(target)[at++] = to + f;
      });
    }
  });
  return {source, target};
}

std::tuple<Tensor, Tensor, Tensor> transpose_index(Tensor indptr, Tensor cols, int64_t channels,
                                                   int64_t taps) {
  const char* op = "transpose_index";
  require(channels >= 0 && taps >= 1, op, ": channels must be at least 0 and taps at least 1.");
  const Index found = transposed(checked_index(op, indptr, cols, 1, channels * taps), taps);
  return {found.owner[0], found.owner[1], found.owner[2]};
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("change_index", TORCH_BOX(&fedsparse::change_index));
  m.impl("match_index", TORCH_BOX(&fedsparse::match_index));
  m.impl("transpose_index", TORCH_BOX(&fedsparse::transpose_index));
}
