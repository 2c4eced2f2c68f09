#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

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

void add_fixed_where(int64_t* sums, int64_t* weights, const uint8_t* mask, size_t size, const float* values,
                     size_t count, double scale, int64_t weight) {
  size_t active = 0;
  for (size_t i = 0; i < size; ++i) active += mask[i] != 0;
  if (active != count)
    throw std::invalid_argument("a mask with " + std::to_string(active) + " true elements for " +
                                std::to_string(count) + " values");
  if (count == 0) return;
  // Without a branch, which a random mask would make unpredictable.
  size_t at = 0;
  for (size_t i = 0; i < size; ++i) {
    const bool here = mask[i] != 0;
    const int64_t keep = -static_cast<int64_t>(here);
    sums[i] += fixed(values[at < count ? at : count - 1], scale) & keep;
    weights[i] += weight & keep;
    at += here;
  }
}

}  // namespace fedsparse::wire
