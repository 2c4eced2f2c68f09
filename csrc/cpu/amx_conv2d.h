// The three products of blocked convolutions in bfloat16 (amx.h), for masks of strips of 16 or 32 rows.  Sums
// are fp32, results are rounded once.
#pragma once

#include <cstring>
#include <optional>

#include "amx.h"
#include "blocked_tensor.h"
#include "conv_geometry.h"
#include "lists.h"

namespace fedsparse {

inline bool is_bf16(const Tensor& tensor) { return tensor.scalar_type() == ScalarType::BFloat16; }

inline float number(Bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float found;
  std::memcpy(&found, &bits, sizeof found);
  return found;
}

// To the nearest T, ties to even; in bfloat16 by way of float.
template <typename T>
T rounded(double x) {
  return static_cast<T>(x);
}
template <>
Bf16 rounded<Bf16>(double x);

// Calls body(float{}), body(double{}) or body(Bf16{}) by the tensor's dtype.
template <typename Body>
auto by_operand(const Tensor& tensor, const Body& body) {
  return is_bf16(tensor) ? body(Bf16{}) : by_type(tensor, body);
}

// float32, float64 or bfloat16, on the CPU, contiguous.
Tensor checked_operand(const char* op, const char* name, const Tensor& tensor, int64_t dims);
Tensor checked_blocked_operand(const char* op, const char* name, const Tensor& tensor);

// y [blocks, N, H', W', 16] of x; bias has bfloat16 too.
void amx_forward(const char* op, const Conv& conv, const Index& index, const Tensor& values,
                 const std::optional<Tensor>& bias, const Tensor& x, Tensor& y);
// dx [blocks, C, H, W, 16] of gy.
void amx_input_gradient(const char* op, const Conv& conv, const Index& index, const Tensor& values,
                        const Tensor& gy, Tensor& dx);
// dvalues [nnz] of gy and x, whose lanes without an image are left out.
void amx_weight_gradient(const char* op, const Conv& conv, const Index& index, const Tensor& gy,
                         const Tensor& x, Tensor& dvalues);

}  // namespace fedsparse
