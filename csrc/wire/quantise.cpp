#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include "wire.h"

namespace fedsparse::wire {
namespace {

constexpr float kLargest = 127.0f;
// Below this a segment's scale would not be a normal number, so the segment is sent as zeros.
constexpr float kSmallest = 0x1p-100f;

// A counter-based generator: the bits at position i depend on nothing but (seed, i), in any order, on any
// machine. Mixing constants: "lowbias32" (C. Wellons, hash prospector).
inline uint32_t mixed(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ (x >> 16);
}

// floor(value * steps + u) for u uniform in [0, 1): the two neighbours of value * steps, right on average.
FEDSPARSE_CLONES void round_stochastically(const float* values, uint32_t count, float steps, uint32_t key,
                                           uint32_t first, int8_t* out) {
  for (uint32_t i = 0; i < count; ++i) {
    const float u = static_cast<float>(static_cast<int32_t>(mixed((first + i) ^ key) >> 8)) * 0x1p-24f;
    const float shifted = values[i] * steps + u;
    int32_t whole = static_cast<int32_t>(shifted);
    whole -= shifted < static_cast<float>(whole);
    whole = whole > 127 ? 127 : whole;
    out[i] = static_cast<int8_t>(whole < -127 ? -127 : whole);
  }
}

FEDSPARSE_CLONES void multiply(const int8_t* quantised, size_t count, float scale, float* values) {
  for (size_t i = 0; i < count; ++i) values[i] = static_cast<float>(quantised[i]) * scale;
}

FEDSPARSE_CLONES bool has_lowest(const int8_t* quantised, size_t count) {
  bool found = false;
  for (size_t i = 0; i < count; ++i) found |= quantised[i] == -128;
  return found;
}

}  // namespace

float quantise(const float* values, size_t count, uint64_t seed, size_t first, int8_t* out) {
  const float largest = magnitude(values, count);
  if (!std::isfinite(largest)) {
    size_t i = 0;
    while (std::isfinite(values[i])) ++i;
    throw std::invalid_argument("value at position " + std::to_string(first + i) +
                                " is not finite, and int8 cannot carry it");
  }
  if (largest < kSmallest) {
    std::memset(out, 0, count);
    return 0.0f;
  }
  const float steps = kLargest / largest;
  constexpr size_t block = size_t{1} << 30;
  for (size_t start = 0; start < count; start += block) {
    const uint64_t at = first + start;
    const uint32_t key = mixed(mixed(static_cast<uint32_t>(seed)) ^ static_cast<uint32_t>(seed >> 32)) +
                         static_cast<uint32_t>(at >> 32);
    const size_t length = count - start < block ? count - start : block;
    round_stochastically(values + start, static_cast<uint32_t>(length), steps, key, static_cast<uint32_t>(at),
                         out + start);
  }
  const float scale = largest / kLargest;
  return std::isfinite(scale * kLargest) ? scale : std::nextafter(scale, 0.0f);
}

void dequantise(const int8_t* quantised, size_t count, float scale, float* values) {
  if (!(scale >= 0.0f) || !std::isfinite(scale * kLargest))
    throw std::invalid_argument("a scale is " + std::to_string(scale) + ", not a finite number of 0 or more");
  if (has_lowest(quantised, count))
    throw std::invalid_argument("a quantised value is -128, the least is -127");
  multiply(quantised, count, scale, values);
}

}  // namespace fedsparse::wire
