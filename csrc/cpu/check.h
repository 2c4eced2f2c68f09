// Checks at the entry of every CPU op: one sentence that names the argument.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>

namespace fedsparse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream sentence;
  (sentence << ... << parts);
  throw std::runtime_error(sentence.str());
}

template <typename... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) fail(parts...);
}

inline void require_dims(const char* op, const char* name, const Tensor& tensor, int64_t dims) {
  require(tensor.dim() == dims, op, ": ", name, " must have ", dims, " dimension(s), not ", tensor.dim(),
          ".");
  require(tensor.is_cpu(), op, ": ", name, " must be on the CPU.");
}

// float32 or float64, on the CPU, contiguous.
inline Tensor checked_floats(const char* op, const char* name, const Tensor& tensor, int64_t dims) {
  require_dims(op, name, tensor, dims);
  const ScalarType type = tensor.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::Double, op, ": ", name,
          " must be float32 or float64.");
  return torch::stable::contiguous(tensor);
}

inline void require_same_type(const char* op, const char* name, const Tensor& tensor, const Tensor& other) {
  require(tensor.scalar_type() == other.scalar_type(), op, ": ", name,
          " must have the dtype of the other operands.");
}

inline Tensor checked_indices(const char* op, const char* name, const Tensor& tensor) {
  require_dims(op, name, tensor, 1);
  require(tensor.scalar_type() == ScalarType::Int, op, ": ", name, " must be int32.");
  return torch::stable::contiguous(tensor);
}

// int32 or int16, as int32.
Tensor checked_columns(const char* op, const char* name, const Tensor& tensor);

template <typename T>
const T* in_ptr(const Tensor& tensor) {
  return static_cast<const T*>(tensor.data_ptr());
}

template <typename T>
T* out_ptr(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Calls body(float{}) or body(double{}) by the tensor's dtype.
template <typename Body>
auto by_type(const Tensor& tensor, const Body& body) {
  return tensor.scalar_type() == ScalarType::Double ? body(double{}) : body(float{});
}

}  // namespace fedsparse
