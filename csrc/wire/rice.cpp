#include <bit>
#include <cstring>
#include <stdexcept>
#include <string>

#include "wire.h"

namespace fedsparse::wire {
namespace {

[[noreturn]] void refuse(const std::string& sentence) { throw std::invalid_argument(sentence); }

// The parameter k of the next gap, from a moving average over the last 64 or so: both sides see the same
// gaps, so it does not travel. It starts from the average that size and count tell.
class Parameter {
 public:
  Parameter(size_t count, int64_t size) : sum_(count == 0 ? 0 : 64 * (static_cast<uint64_t>(size) / count)) {}
  // For geometric gaps k + 1 beats k from q^(2^k) = 0.618 on, which is where 0.48 (mean + 1/2) passes 2^k.
  int bits() const { return std::bit_width(((sum_ + 32) * 123) >> 14); }
  void learn(uint64_t gap) { sum_ += gap - (sum_ >> 6); }

 private:
  uint64_t sum_;  // 64 times the average, below 2^39
};

class Writer {
 public:
  Writer(uint8_t* out, size_t capacity) : out_(out), end_(out + capacity) {}

  void put(uint64_t bits, int count) {
    word_ |= bits << used_;
    used_ += count;
    for (; used_ >= 32; used_ -= 32, word_ >>= 32) store(4);
  }

  void finish() {
    store((used_ + 7) / 8);
    if (out_ != end_) refuse("the indices changed while they were encoded");
  }

 private:
  void store(int bytes) {
    // Another thread may have changed the indices since their length was taken.
    if (end_ - out_ < bytes) refuse("the indices changed while they were encoded");
    std::memcpy(out_, &word_, bytes);
    out_ += bytes;
  }

  uint64_t word_ = 0;
  int used_ = 0;
  uint8_t *out_, *end_;
};

class Reader {
 public:
  static constexpr int kVisible = 56;

  Reader(const uint8_t* data, size_t length) : data_(data), length_(length) {}

  // The next 56 bits, zeros after the end.
  uint64_t peek() const {
    const size_t byte = at_ >> 3;
    uint64_t word = 0;
    if (byte + 8 <= length_)
      std::memcpy(&word, data_ + byte, 8);
    else if (byte < length_)
      std::memcpy(&word, data_ + byte, length_ - byte);
    return (word >> (at_ & 7)) & ((uint64_t{1} << kVisible) - 1);
  }
  void skip(int bits) { at_ += bits; }
  bool ended() const { return at_ > 8 * length_; }
  // Whether what is left is less than a byte of zeros.
  bool finished() const { return (at_ + 7) / 8 == length_ && peek() == 0; }

 private:
  const uint8_t* data_;
  size_t length_, at_ = 0;
};

}  // namespace

size_t rice_length(const int64_t* indices, size_t count, int64_t size) {
  Parameter parameter(count, size);
  uint64_t bits = 0;
  int64_t previous = -1;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t gap = static_cast<uint64_t>(indices[i] - previous - 1);
    const int k = parameter.bits();
    bits += (gap >> k) + 1 + k;
    parameter.learn(gap);
    previous = indices[i];
  }
  return (bits + 7) / 8;
}

void rice_encode(const int64_t* indices, size_t count, int64_t size, uint8_t* out, size_t capacity) {
  Parameter parameter(count, size);
  Writer writer(out, capacity);
  int64_t previous = -1;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t gap = static_cast<uint64_t>(indices[i] - previous - 1);
    previous = indices[i];
    if ((gap >> 32) != 0) refuse("the indices changed while they were encoded");
    const int k = parameter.bits();
    uint64_t quotient = gap >> k;
    for (; quotient >= 32; quotient -= 32) writer.put(0, 32);
    writer.put(uint64_t{1} << quotient, static_cast<int>(quotient) + 1);
    writer.put(gap & ((uint64_t{1} << k) - 1), k);
    parameter.learn(gap);
  }
  writer.finish();
}

void rice_decode(const uint8_t* data, size_t length, size_t count, int64_t size, int64_t* indices) {
  Parameter parameter(count, size);
  Reader reader(data, length);
  int64_t previous = -1;
  for (size_t i = 0; i < count; ++i) {
    const int k = parameter.bits();
    uint64_t quotient = 0, word = reader.peek();
    for (; word == 0 && !reader.ended(); word = reader.peek()) {
      quotient += Reader::kVisible;
      reader.skip(Reader::kVisible);
    }
    const int zeros = word == 0 ? 0 : std::countr_zero(word);
    quotient += zeros;
    reader.skip(zeros + 1);
    const uint64_t rest = reader.peek() & ((uint64_t{1} << k) - 1);
    reader.skip(k);
    if (reader.ended())
      refuse("Rice-coded indices end after " + std::to_string(i) + " of " + std::to_string(count));
    const uint64_t room = static_cast<uint64_t>(size - previous - 1);
    const uint64_t gap = quotient > (room >> k) ? room : (quotient << k | rest);
    if (gap >= room)
      refuse("the index at position " + std::to_string(i) + " is outside [0, " + std::to_string(size) + ")");
    parameter.learn(gap);
    indices[i] = previous = previous + 1 + static_cast<int64_t>(gap);
  }
  if (!reader.finished()) refuse("bits follow the " + std::to_string(count) + " Rice-coded indices");
}

}  // namespace fedsparse::wire
