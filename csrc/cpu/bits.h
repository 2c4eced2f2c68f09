// Bitmaps of flags: element i of a row is bit i % 8 of byte i / 8.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace fedsparse {

static_assert(std::endian::native == std::endian::little, "bitmaps are gathered from little-endian words");

constexpr int64_t kWord = 64;

constexpr int64_t bitmap_bytes(int64_t count) { return (count + 7) / 8; }

// Bit i is test(i), for i below count (at most 64). The flags are made as bytes, which vectorises; a
// multiplication then moves the lowest bits of eight bytes into one: byte i meets the factor 2^(56 - 7 i) and
// lands at bit 56 + i.
template <typename Test>
uint64_t flag_word(int64_t count, const Test& test) {
  alignas(64) uint8_t flags[kWord] = {};
  if (count == kWord) {
    for (int64_t i = 0; i < kWord; ++i) flags[i] = test(i);
  } else {
    for (int64_t i = 0; i < count; ++i) flags[i] = test(i);
  }
  uint64_t word = 0;
  for (int64_t byte = 0; byte < 8; ++byte) {
    uint64_t eight;
    std::memcpy(&eight, flags + 8 * byte, 8);
    word |= (eight * 0x0102040810204080u >> 56) << (8 * byte);
  }
  return word;
}

// Calls body(first, count) for each stretch of at most 64 elements.
template <typename Body>
void over_words(int64_t elements, const Body& body) {
  int64_t first = 0;
  for (; first + kWord <= elements; first += kWord) body(first, kWord);
  if (first < elements) body(first, elements - first);
}

// The word of `count` flags from element `first` on, a multiple of 64.
inline uint64_t read_word(const uint8_t* bits, int64_t first, int64_t count) {
  uint64_t word = 0;
  std::memcpy(&word, bits + first / 8, static_cast<size_t>(bitmap_bytes(count)));
  return word;
}

inline void write_word(uint8_t* bits, int64_t first, int64_t count, uint64_t word) {
  std::memcpy(bits + first / 8, &word, static_cast<size_t>(bitmap_bytes(count)));
}

// Calls body(i) for each bit i that is set, from the lowest on.
template <typename Body>
void over_bits(uint64_t word, const Body& body) {
  for (; word; word &= word - 1) body(std::countr_zero(word));
}

}  // namespace fedsparse
