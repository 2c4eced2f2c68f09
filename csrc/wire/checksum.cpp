#include <algorithm>
#include <array>
#include <cstring>

#include "wire.h"

namespace fedsparse::wire {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;
using Tables = std::array<std::array<uint32_t, 256>, 8>;

// tables[k][b]: effect of byte b followed by k zero bytes.
constexpr Tables make_tables() {
  Tables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t crc = byte;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? kPolynomial : 0);
    tables[0][byte] = crc;
  }
  for (int k = 1; k < 8; ++k)
    for (int byte = 0; byte < 256; ++byte) {
      const uint32_t crc = tables[k - 1][byte];
      tables[k][byte] = (crc >> 8) ^ tables[0][crc & 0xff];
    }
  return tables;
}

constexpr Tables kTables = make_tables();

uint64_t load_word(const uint8_t* data) {
  uint64_t word;
  std::memcpy(&word, data, sizeof(word));
  return word;
}

#if defined(__x86_64__)
// What `length` zero bytes do to a checksum's register: linear, so a table for each of its bytes.
class Zeros {
 public:
  explicit Zeros(size_t length) {
    for (int bit = 0; bit < 32; ++bit) {
      uint32_t crc = 1u << bit;
      for (size_t k = 0; k < length; ++k) crc = (crc >> 8) ^ kTables[0][crc & 0xff];
      for (uint32_t byte = 0; byte < 256; ++byte)
        if (byte >> (bit % 8) & 1) tables_[bit / 8][byte] ^= crc;
    }
  }
  uint32_t operator()(uint32_t crc) const {
    uint32_t result = 0;
    for (int k = 0; k < 4; ++k) result ^= tables_[k][(crc >> (8 * k)) & 0xff];
    return result;
  }

 private:
  std::array<std::array<uint32_t, 256>, 4> tables_{};
};

// The instruction takes three cycles and can start in each: three lanes at a time, joined by the shifts
// above.
constexpr size_t kLane = 1024;

__attribute__((target("sse4.2"))) uint32_t crc32c_sse42(const uint8_t* data, size_t length, uint32_t seed) {
  static const Zeros one_lane(kLane), two_lanes(2 * kLane);
  uint64_t crc = ~seed;
  for (; length >= 3 * kLane; data += 3 * kLane, length -= 3 * kLane) {
    uint64_t second = 0, third = 0;
    for (const uint8_t* at = data; at < data + kLane; at += 8) {
      crc = __builtin_ia32_crc32di(crc, load_word(at));
      second = __builtin_ia32_crc32di(second, load_word(at + kLane));
      third = __builtin_ia32_crc32di(third, load_word(at + 2 * kLane));
    }
    crc = two_lanes(static_cast<uint32_t>(crc)) ^ one_lane(static_cast<uint32_t>(second)) ^ third;
  }
  for (; length >= 8; data += 8, length -= 8) crc = __builtin_ia32_crc32di(crc, load_word(data));
  uint32_t tail = static_cast<uint32_t>(crc);
  for (; length > 0; ++data, --length) tail = __builtin_ia32_crc32qi(tail, *data);
  return ~tail;
}
#endif

}  // namespace

uint32_t crc32c_portable(const uint8_t* data, size_t length, uint32_t seed) {
  uint32_t crc = ~seed;
  for (; length >= 8; data += 8, length -= 8) {
    const uint64_t word = load_word(data) ^ crc;
    crc = 0;
    for (int k = 0; k < 8; ++k) crc ^= kTables[7 - k][(word >> (8 * k)) & 0xff];
  }
  for (; length > 0; ++data, --length) crc = (crc >> 8) ^ kTables[0][(crc ^ *data) & 0xff];
  return ~crc;
}

bool crc32c_has_hardware() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("sse4.2");
#else
  return false;
#endif
}

uint32_t crc32c(const uint8_t* data, size_t length, uint32_t seed) {
#if defined(__x86_64__)
  if (crc32c_has_hardware()) return crc32c_sse42(data, length, seed);
#endif
  return crc32c_portable(data, length, seed);
}

uint32_t copy_crc32c(const uint8_t* data, size_t length, uint32_t seed, uint8_t* out) {
  // By pieces that stay in the first-level cache.
  constexpr size_t kPiece = 12288;
  for (size_t at = 0; at < length; at += kPiece) {
    const size_t size = std::min(kPiece, length - at);
    seed = crc32c(data + at, size, seed);
    std::memcpy(out + at, data + at, size);
  }
  return seed;
}

}  // namespace fedsparse::wire
