// What `unpack` and `gather` have in common on every device: the operands' checks, the output, the dispatch
// by dtype.
//
// Both only move bytes, so a back end supplies one kernel per element size (2, 4, 8 bytes) that serves every
// dtype of that size; `granularity` rows share a list of columns (see fedsparse/topology.py):
//   Backend::unpack<Word>(values, indptr, cols, granularity, row_len, dense)
//   Backend::gather<Word>(dense, indptr, cols, granularity, values)
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <limits>

namespace fedsparse {
namespace unpack_op {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline void check_index(const char* op, const Tensor& operand, const Tensor& indptr, const Tensor& cols,
                        int64_t granularity) {
  STD_TORCH_CHECK(indptr.scalar_type() == ScalarType::Int && cols.scalar_type() == ScalarType::Int, op,
                  ": indptr and cols must be int32");
  STD_TORCH_CHECK(indptr.dim() == 1 && indptr.size(0) >= 1 && cols.dim() == 1, op,
                  ": indptr must be [N+1] and cols [nnz]");
  STD_TORCH_CHECK(indptr.get_device_index() == operand.get_device_index() &&
                      cols.get_device_index() == operand.get_device_index(),
                  op, ": indptr and cols must be on the device of the other operand");
  STD_TORCH_CHECK(granularity >= 1 && cols.numel() <= std::numeric_limits<int32_t>::max() / granularity, op,
                  ": more than 2^31 - 1 active weights, or a granularity below 1");
}

inline void check_row_len(const char* op, int64_t row_len) {
  STD_TORCH_CHECK(row_len >= 1 && row_len <= (int64_t{1} << 30), op, ": row_len must be between 1 and 2^30");
}

// `launch` is a generic lambda: it gets one element of the unsigned type as wide as the tensor's.
template <typename Launch>
void by_element_size(const char* op, const Tensor& tensor, const Launch& launch) {
  switch (tensor.scalar_type()) {
    case ScalarType::Half:
    case ScalarType::BFloat16:
      return launch(uint16_t{});
    case ScalarType::Float:
      return launch(uint32_t{});
    case ScalarType::Double:
      return launch(uint64_t{});
    default:
      STD_TORCH_CHECK(false, op, ": the dtype must be float16, bfloat16, float32 or float64");
  }
}

template <typename Backend>
Tensor unpack(const Tensor& values_in, const Tensor& indptr_in, const Tensor& cols_in, int64_t granularity,
              int64_t row_len) {
  const Tensor values = torch::stable::contiguous(values_in);
  const Tensor indptr = torch::stable::contiguous(indptr_in);
  const Tensor cols = torch::stable::contiguous(cols_in);
  check_index("unpack", values, indptr, cols, granularity);
  check_row_len("unpack", row_len);
  STD_TORCH_CHECK(values.dim() == 1 && values.numel() == cols.numel() * granularity,
                  "unpack: values must be [nnz], granularity times as many as cols");
  Tensor dense = torch::stable::new_empty(values, {(indptr.size(0) - 1) * granularity, row_len});
  if (dense.numel() == 0) return dense;
  by_element_size("unpack", values, [&](auto word) {
    Backend::template unpack<decltype(word)>(values, indptr, cols, granularity, row_len, dense);
  });
  return dense;
}

template <typename Backend>
Tensor gather(const Tensor& dense_in, const Tensor& indptr_in, const Tensor& cols_in, int64_t granularity) {
  const Tensor dense = torch::stable::contiguous(dense_in);
  const Tensor indptr = torch::stable::contiguous(indptr_in);
  const Tensor cols = torch::stable::contiguous(cols_in);
  check_index("gather", dense, indptr, cols, granularity);
  STD_TORCH_CHECK(dense.dim() == 2 && dense.size(0) == (indptr.size(0) - 1) * granularity,
                  "gather: dense must be [N, row_len]");
  check_row_len("gather", dense.size(1));
  Tensor values = torch::stable::new_empty(dense, {cols.numel() * granularity});
  if (values.numel() == 0) return values;
  by_element_size("gather", dense, [&](auto word) {
    Backend::template gather<decltype(word)>(dense, indptr, cols, granularity, values);
  });
  return values;
}

}  // namespace unpack_op
}  // namespace fedsparse
