// A bit an element: where a ReLU's output lies within its limits, and a gradient where the bit is set.
// Included by kernels.cpp, under its rules.
#pragma once

#include "zeros.h"

namespace fedsparse {
namespace {

// n is a multiple of 8. A NaN passes its gradient on, as in torch.
void set_flags(const float* y, int64_t n, float limit, uint8_t* bits) {
  const __m256 zero = _mm256_setzero_ps(), most = _mm256_set1_ps(limit);
  for (int64_t i = 0; i < n; i += kByte) {
    const __m256 eight = _mm256_loadu_ps(y + i);
    const __m256 inside =
        _mm256_and_ps(_mm256_cmp_ps(eight, zero, _CMP_NLE_UQ), _mm256_cmp_ps(eight, most, _CMP_NGE_UQ));
    bits[i / kByte] = static_cast<uint8_t>(_mm256_movemask_ps(inside));
  }
}

// n is a multiple of 8; out may be x.
void choose_flagged(const float* x, const uint8_t* bits, int64_t n, float* out) {
  for (int64_t i = 0; i < n; i += kByte)
    _mm256_storeu_ps(
        out + i, _mm256_and_ps(_mm256_loadu_ps(x + i), _mm256_castsi256_ps(flagged_lanes(bits[i / kByte]))));
}

}  // namespace
}  // namespace fedsparse
