#include "lines.h"

namespace fedsparse {
namespace {

const LineTable& chosen_lines() {
#if defined(FEDSPARSE_X86)
  if (&chosen_isa() == &kIsa_avx512) return kLines_avx512;
  if (&chosen_isa() == &kIsa_avx2) return kLines_avx2;
#endif
  return kLines_portable;
}

}  // namespace

template <>
const LineKernels<float>& line_kernels<float>() {
  return chosen_lines().single;
}

template <>
const LineKernels<double>& line_kernels<double>() {
  return chosen_lines().twice;
}

}  // namespace fedsparse
