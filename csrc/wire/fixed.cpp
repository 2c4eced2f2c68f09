#include <cmath>
#include <cstring>

#include "wire.h"

namespace fedsparse::wire {
namespace {

// The current rounding mode is to nearest, ties to even, which is what torch.round does.
inline int64_t fixed(float value, double scale) {
  return static_cast<int64_t>(std::llrint(static_cast<double>(value) * scale));
}

}  // namespace

FEDSPARSE_CLONES float magnitude(const float* values, size_t count) {
  // Bit patterns of magnitudes order as the magnitudes do, NaN above infinity.
  uint32_t largest = 0;
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, values + i, sizeof(bits));
    bits &= 0x7fffffffu;
    largest = bits > largest ? bits : largest;
  }
  float found;
  std::memcpy(&found, &largest, sizeof(found));
  return found;
}

void add_fixed(int64_t* sums, const float* values, size_t count, double scale) {
  for (size_t i = 0; i < count; ++i) sums[i] += fixed(values[i], scale);
}

}  // namespace fedsparse::wire
