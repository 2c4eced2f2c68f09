// Magnitudes of floats as integers, and bfloat16.
#pragma once

#include <bit>
#include <cstdint>
#include <type_traits>

namespace fedsparse {

// Bits of a magnitude that one step of a radix selection looks at.
inline constexpr int kDigit = 11;

template <typename T>
using KeyOf = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;

// The magnitude as an integer that orders like it: all bits but the sign. NaN lies above infinity and so is
// kept.
template <typename T>
KeyOf<T> magnitude(T x) {
  return std::bit_cast<KeyOf<T>>(x) & ~(KeyOf<T>{1} << (8 * sizeof(T) - 1));
}

// Rounds to the nearest bfloat16, ties to even; NaN stays NaN.
struct Bfloat16 {
  uint16_t bits = 0;
  Bfloat16() = default;
  explicit Bfloat16(float x) {
    const auto word = std::bit_cast<uint32_t>(x);
    bits = static_cast<uint16_t>(x != x ? word >> 16 | 0x40 : (word + 0x7fff + (word >> 16 & 1)) >> 16);
  }
  explicit operator float() const { return std::bit_cast<float>(uint32_t{bits} << 16); }
};

}  // namespace fedsparse
