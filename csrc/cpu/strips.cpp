#include "strips.h"

namespace fedsparse {
namespace {

const StripTable& chosen_strips() {
#if defined(FEDSPARSE_X86)
  if (&chosen_isa() == &kIsa_avx512) return kStrips_avx512;
  if (&chosen_isa() == &kIsa_avx2) return kStrips_avx2;
#endif
  return kStrips_portable;
}

}  // namespace

template <>
const StripKernels<float>& strip_kernels<float>() {
  return chosen_strips().single;
}

template <>
const StripKernels<double>& strip_kernels<double>() {
  return chosen_strips().twice;
}

}  // namespace fedsparse
