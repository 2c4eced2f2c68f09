// relu_bits: one bit an element, where a ReLU's output is above 0 and below the limit.  relu_gradient: gy
// where the bit is set, else 0; relu_gradient_: the same in place.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <type_traits>

#include "bits.h"
#include "check.h"
#include "isa.h"

namespace fedsparse {
namespace {

// Words of 64 elements below which a second thread is not worth its start.
constexpr int64_t kGrain = 1 << 9;

// Calls body(first, count) for stretches that begin at multiples of 64 elements.
template <typename Body>
void over_stretches(int64_t elements, const Body& body) {
  torch::stable::parallel_for(0, (elements + kWord - 1) / kWord, kGrain, [&](int64_t begin, int64_t end) {
    body(begin * kWord, std::min(elements, end * kWord) - begin * kWord);
  });
}

// Elements of float that the instruction set's kernel takes: whole bytes of bits.
constexpr int64_t whole_bytes(int64_t count) { return count / 8 * 8; }

template <typename T>
void set_bits(const T* y, int64_t count, T limit, uint8_t* bits) {
  if constexpr (std::is_same_v<T, float>) {
    if (const auto set = chosen_isa().flags.set) {
      const int64_t done = whole_bytes(count);
      set(y, done, limit, bits);
      y += done, count -= done, bits += done / 8;
    }
  }
  over_words(count, [&](int64_t first, int64_t size) {
    const T* at = y + first;
    // A NaN passes its gradient on, as in torch.
    write_word(bits, first, size,
               flag_word(size, [&](int64_t i) { return !((at[i] <= 0) | (at[i] >= limit)); }));
  });
}

Tensor relu_bits(Tensor y_in, double limit) {
  const Tensor y = checked_floats("relu_bits", "y", torch::stable::flatten(y_in), 1);
  const Tensor bits = torch::stable::new_empty(y, {bitmap_bytes(y.numel())}, ScalarType::Byte);
  by_type(y, [&](auto zero) {
    using T = decltype(zero);
    over_stretches(y.numel(), [&](int64_t first, int64_t count) {
      set_bits(in_ptr<T>(y) + first, count, static_cast<T>(limit), out_ptr<uint8_t>(bits) + first / 8);
    });
  });
  return bits;
}

// Eight lanes of a byte at a time, without a branch: the mask of a lane is all ones where its bit is set.
template <typename T>
void choose_word(const T* gy, uint64_t word, int64_t count, T* gx) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static constexpr Bits kLane[8] = {1, 2, 4, 8, 16, 32, 64, 128};
  for (int64_t first = 0; first < count; first += 8, word >>= 8) {
    const Bits byte = word & 0xff;
    const int64_t lanes = std::min<int64_t>(8, count - first);
    const auto lane = [&](int64_t i) {
      const Bits mask = (byte & kLane[i]) == kLane[i] ? ~Bits{0} : Bits{0};
      gx[first + i] = std::bit_cast<T>(std::bit_cast<Bits>(gy[first + i]) & mask);
    };
    if (lanes == 8) {
      for (int64_t i = 0; i < 8; ++i) lane(i);
    } else {
      for (int64_t i = 0; i < lanes; ++i) lane(i);
    }
  }
}

template <typename T>
void choose(const T* gy, const uint8_t* bits, int64_t count, T* gx) {
  if constexpr (std::is_same_v<T, float>) {
    if (const auto chosen = chosen_isa().flags.choose) {
      const int64_t done = whole_bytes(count);
      chosen(gy, bits, done, gx);
      gy += done, count -= done, bits += done / 8, gx += done;
    }
  }
  over_words(count, [&](int64_t first, int64_t size) {
    choose_word(gy + first, read_word(bits, first, size), size, gx + first);
  });
}

// gx may be gy itself.
void gradient_into(const char* op, const Tensor& gy, Tensor bits_in, const Tensor& gx) {
  require_dims(op, "bits", bits_in, 1);
  const Tensor bits = torch::stable::contiguous(bits_in);
  require(gy.scalar_type() == ScalarType::Float || gy.scalar_type() == ScalarType::Double, op,
          ": gy must be float32 or float64.");
  require(bits.scalar_type() == ScalarType::Byte && bits.numel() == bitmap_bytes(gy.numel()), op,
          ": bits must be uint8 with ", bitmap_bytes(gy.numel()), " entries.");
  by_type(gy, [&](auto zero) {
    using T = decltype(zero);
    over_stretches(gy.numel(), [&](int64_t first, int64_t count) {
      choose(in_ptr<T>(gy) + first, in_ptr<uint8_t>(bits) + first / 8, count, out_ptr<T>(gx) + first);
    });
  });
}

Tensor relu_gradient(Tensor gy_in, Tensor bits) {
  const Tensor gy = torch::stable::contiguous(gy_in);
  const Tensor gx = torch::stable::empty_like(gy);
  gradient_into("relu_gradient", gy, bits, gx);
  return gx;
}

void relu_gradient_(Tensor gy, Tensor bits) {
  require(gy.is_contiguous(), "relu_gradient_", ": gy must be contiguous.");
  gradient_into("relu_gradient_", gy, bits, gy);
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("relu_bits", TORCH_BOX(&fedsparse::relu_bits));
  m.impl("relu_gradient", TORCH_BOX(&fedsparse::relu_gradient));
  m.impl("relu_gradient_", TORCH_BOX(&fedsparse::relu_gradient_));
}
