// The gradient to rows of a dense 3x3 weight by the kernels of winograd.h.
#pragma once

#include "conv_geometry.h"

namespace fedsparse {

// Whether the tiles take fewer products than the sum itself.
bool winograd_pays(const Conv& conv);

// Rows first to first + rows of the gradient to the weight, [rows, channels * 9]; x and gy are blocked.
void winograd_rows(const Conv& conv, const Tensor& x, const Tensor& gy, int64_t first, int64_t rows,
                   float* gradient);

}  // namespace fedsparse
