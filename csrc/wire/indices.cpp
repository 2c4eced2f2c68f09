#include <stdexcept>
#include <string>

#include "wire.h"

namespace fedsparse::wire {
namespace {

// Indices lie below 2^32, so a gap takes at most five groups of seven bits.
constexpr int kMaxGroups = 5;

size_t varint_length(uint64_t value) {
  return 1 + (value >= (1ull << 7)) + (value >= (1ull << 14)) + (value >= (1ull << 21)) +
         (value >= (1ull << 28));
}

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

void check_index(int64_t index, int64_t previous, int64_t size, size_t position) {
  if (index < 0 || index >= size)
    refuse("index " + std::to_string(index) + " at position " + std::to_string(position) +
           " is outside [0, " + std::to_string(size) + ")");
  if (index <= previous)
    refuse("indices must increase strictly, but " + std::to_string(index) + " follows " +
           std::to_string(previous) + " at position " + std::to_string(position));
}

}  // namespace

size_t delta_length(const int64_t* indices, size_t count, int64_t size) {
  size_t length = 0;
  int64_t previous = -1;
  for (size_t k = 0; k < count; ++k) {
    check_index(indices[k], previous, size, k);
    length += varint_length(static_cast<uint64_t>(indices[k] - previous - 1));
    previous = indices[k];
  }
  return length;
}

void delta_encode(const int64_t* indices, size_t count, uint8_t* out, size_t capacity) {
  const uint8_t* end = out + capacity;
  int64_t previous = -1;
  for (size_t k = 0; k < count; ++k) {
    uint64_t gap = static_cast<uint64_t>(indices[k] - previous - 1);
    previous = indices[k];
    // Another thread may have changed the indices since their length was taken.
    if (static_cast<size_t>(end - out) < varint_length(gap) || (gap >> 32) != 0)
      refuse("the indices changed while they were encoded");
    for (; gap >= 0x80; gap >>= 7) *out++ = static_cast<uint8_t>(gap | 0x80);
    *out++ = static_cast<uint8_t>(gap);
  }
  if (out != end) refuse("the indices changed while they were encoded");
}

void delta_decode(const uint8_t* data, size_t length, size_t count, int64_t size, int64_t* indices) {
  const uint8_t* end = data + length;
  int64_t previous = -1;
  for (size_t k = 0; k < count; ++k) {
    uint64_t gap = 0;
    uint8_t byte = 0x80;
    for (int group = 0; byte & 0x80; ++group) {
      if (data == end)
        refuse("delta-coded indices end after " + std::to_string(k) + " of " + std::to_string(count));
      if (group == kMaxGroups) refuse("the gap at position " + std::to_string(k) + " takes over five bytes");
      byte = *data++;
      gap |= static_cast<uint64_t>(byte & 0x7f) << (7 * group);
      if (byte == 0 && group > 0)
        refuse("the gap at position " + std::to_string(k) + " is not coded in its shortest form");
    }
    const int64_t index = previous + 1 + static_cast<int64_t>(gap);
    if (index >= size)
      refuse("index " + std::to_string(index) + " at position " + std::to_string(k) + " is outside [0, " +
             std::to_string(size) + ")");
    indices[k] = previous = index;
  }
  if (data != end)
    refuse(std::to_string(end - data) + " bytes follow the " + std::to_string(count) +
           " delta-coded indices");
}

}  // namespace fedsparse::wire
