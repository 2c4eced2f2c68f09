// dvalues[j] = sum over b of gy[b, n] * x[b, c] for the j-th active weight (n, c)
#include <torch/csrc/stable/library.h>

#include "linear.h"

namespace fedsparse {
namespace {

template <typename T>
void sample_linear(const Index& index, const Tensor& gy, const Tensor& x, Tensor& dvalues) {
  const int64_t blocks = blocks_of<T>(x.size(0)), chunk = std::min(kChunkBlocks, blocks);
  const SampleRows<T> weight(index, line_table<T>(x.size(1)), linear_blocks<T>(index, x.size(1), chunk),
                             out_ptr<T>(dvalues));
  const Tensor read = torch::stable::new_empty(x, {chunk * x.size(1) * kLanes<T>});
  const Tensor grads = torch::stable::new_empty(x, {chunk * gy.size(1) * kLanes<T>});
  Sample<T> s{
      in_ptr<T>(read), x.size(1) * kLanes<T>, in_ptr<T>(grads), kLanes<T>, gy.size(1) * kLanes<T>, 0, 1};
  for (int64_t first = 0; first < blocks; first += chunk) {
    s.height = std::min(chunk, blocks - first);
    read_blocks(x, first, s.height, out_ptr<T>(read));
    read_blocks(gy, first, s.height, out_ptr<T>(grads));
    over_rows(index, [&](int64_t part, int64_t begin, int64_t end) { weight.add(s, part, begin, end); });
  }
  weight.finish();
}

Tensor sddmm(Tensor indptr, Tensor cols, int64_t granularity, Tensor gy_in, Tensor x_in) {
  const char* op = "sddmm";
  const Tensor gy = checked_floats(op, "gy", gy_in, 2), x = checked_floats(op, "x", x_in, 2);
  require_same_type(op, "x", x, gy);
  const Index index = checked_index(op, indptr, cols, granularity, x.size(1));
  require(gy.size(0) == x.size(0) && gy.size(1) == index.rows, op, ": gy must have shape (", x.size(0), ", ",
          index.rows, ").");
  Tensor dvalues = torch::stable::new_zeros(gy, {index.nnz});
  if (index.nnz == 0 || x.numel() == 0) return dvalues;
  by_type(gy, [&](auto zero) { sample_linear<decltype(zero)>(index, gy, x, dvalues); });
  return dvalues;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("sddmm", TORCH_BOX(&fedsparse::sddmm)); }
