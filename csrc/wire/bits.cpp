#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "wire.h"

namespace fedsparse::wire {
namespace {

// The eight bits of a byte spread to eight bytes of 0 or 1.
constexpr std::array<uint64_t, 256> make_spread() {
  std::array<uint64_t, 256> spread{};
  for (uint64_t byte = 0; byte < 256; ++byte)
    for (int k = 0; k < 8; ++k) spread[byte] |= ((byte >> k) & 1) << (8 * k);
  return spread;
}

constexpr std::array<uint64_t, 256> kSpread = make_spread();

uint8_t gather_bits(uint64_t eight) {
  constexpr uint64_t low = 0x7f7f7f7f7f7f7f7full;
  const uint64_t ones = ((((eight & low) + low) | eight) & ~low) >> 7;
  // The multiplier moves byte k to bit 56 + k; no two partial products share a bit, so nothing carries.
  return static_cast<uint8_t>((ones * 0x0102040810204080ull) >> 56);
}

size_t count_word(uint64_t word) {
  word -= (word >> 1) & 0x5555555555555555ull;
  word = (word & 0x3333333333333333ull) + ((word >> 2) & 0x3333333333333333ull);
  word = (word + (word >> 4)) & 0x0f0f0f0f0f0f0f0full;
  return (word * 0x0101010101010101ull) >> 56;
}

uint64_t load_up_to_8(const uint8_t* data, size_t length) {
  uint64_t word = 0;
  std::memcpy(&word, data, length);
  return word;
}

void check_bitmap(const uint8_t* bits, size_t length, size_t size) {
  if (length != size / 8 + (size % 8 != 0))
    throw std::invalid_argument("a bitmap of " + std::to_string(size) + " bits cannot take " +
                                std::to_string(length) + " bytes");
  if (size % 8 != 0 && (bits[length - 1] >> (size % 8)) != 0)
    throw std::invalid_argument("the bitmap has padding bits set after its " + std::to_string(size) +
                                " bits");
}

}  // namespace

void pack_bits(const uint8_t* mask, size_t size, uint8_t* bits) {
  const size_t whole = size / 8;
  for (size_t j = 0; j < whole; ++j) bits[j] = gather_bits(load_up_to_8(mask + 8 * j, 8));
  if (size % 8 != 0) bits[whole] = gather_bits(load_up_to_8(mask + 8 * whole, size % 8));
}

void unpack_bits(const uint8_t* bits, size_t length, size_t size, uint8_t* mask) {
  check_bitmap(bits, length, size);
  const size_t whole = size / 8;
  for (size_t j = 0; j < whole; ++j) std::memcpy(mask + 8 * j, &kSpread[bits[j]], 8);
  if (size % 8 != 0) std::memcpy(mask + 8 * whole, &kSpread[bits[whole]], size % 8);
}

size_t count_bits(const uint8_t* bits, size_t length) {
  size_t count = 0, j = 0;
  for (; j + 8 <= length; j += 8) count += count_word(load_up_to_8(bits + j, 8));
  return count + count_word(load_up_to_8(bits + j, length - j));
}

void bits_from_indices(const int64_t* indices, size_t count, int64_t size, uint8_t* bits) {
  std::memset(bits, 0, static_cast<size_t>(size / 8 + (size % 8 != 0)));
  for (size_t k = 0; k < count; ++k) {
    const int64_t index = indices[k];
    if (index < 0 || index >= size)
      throw std::invalid_argument("index " + std::to_string(index) + " is outside [0, " +
                                  std::to_string(size) + ")");
    bits[index / 8] |= static_cast<uint8_t>(1u << (index % 8));
  }
}

void indices_from_bits(const uint8_t* bits, size_t length, int64_t size, size_t count, int64_t* indices) {
  check_bitmap(bits, length, static_cast<size_t>(size));
  size_t found = 0;
  for (size_t j = 0; j < length; j += 8) {
    uint64_t word = load_up_to_8(bits + j, length - j < 8 ? length - j : 8);
    for (; word != 0 && found < count; word &= word - 1)
      indices[found++] = static_cast<int64_t>(8 * j) + __builtin_ctzll(word);
    if (word != 0) break;
  }
  if (found != count || count_bits(bits, length) != count)
    throw std::invalid_argument("the bitmap has " + std::to_string(count_bits(bits, length)) +
                                " bits set where " + std::to_string(count) + " are announced");
}

}  // namespace fedsparse::wire
