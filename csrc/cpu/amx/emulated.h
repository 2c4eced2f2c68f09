// Tiles in plain C++: what the instructions do, by the operation sections of Intel's Software Developer's
// Manual (volume 2: LDTILECFG, TILELOADD, TDPBF16PS, TILESTORED).
#pragma once

#include <cstdint>

namespace fedsparse {
namespace {

// Registers 0 to 3 hold sums, 4 and 5 first operands, 6 and 7 second operands.
class Tiles {
 public:
  static constexpr const char* kName = "emulated";

  explicit Tiles(int64_t depth) {
    for (int i = 0; i < 8; ++i) {
      registers_[i].rows = i < 6 ? 16 : static_cast<int>(depth) / 2;
      registers_[i].bytes = i == 4 || i == 5 ? static_cast<int>(depth) * 2 : 64;
      clear(registers_[i]);
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int I>
  void zero() {
    clear(registers_[I]);
  }

  template <int I>
  void load(const void* from, int64_t stride) {
    Register& r = registers_[I];
    clear(r);
    for (int row = 0; row < r.rows; ++row)
      __builtin_memcpy(r.data[row], static_cast<const uint8_t*>(from) + row * stride, r.bytes);
  }

  template <int I>
  void store(void* to, int64_t stride) const {
    const Register& r = registers_[I];
    for (int row = 0; row < r.rows; ++row)
      __builtin_memcpy(static_cast<uint8_t*>(to) + row * stride, r.data[row], r.bytes);
  }

  template <int C, int A, int B>
  void multiply() {
    add_product(registers_[A], registers_[B], registers_[C]);
  }

 private:
  struct Register {
    int rows, bytes;
    uint8_t data[16][64];
  };

  // For each sum, the even products and the odd ones are added up by fused multiply-adds from zero, then the
  // two, then that to the sum.
  __attribute__((noinline)) static void add_product(const Register& a, const Register& b, Register& c) {
    // The instruction is undefined for other shapes.
    if (c.rows != a.rows || c.bytes != b.bytes || a.bytes != 4 * b.rows) __builtin_trap();
    for (int m = 0; m < c.rows; ++m) {
      float even[16] = {}, odd[16] = {};
      for (int k = 0; k < a.bytes / 4; ++k)
        for (int n = 0; n < c.bytes / 4; ++n) {
          even[n] = flushed(__builtin_fmaf(half(a, m, 2 * k), half(b, k, 2 * n), even[n]));
          odd[n] = flushed(__builtin_fmaf(half(a, m, 2 * k + 1), half(b, k, 2 * n + 1), odd[n]));
        }
      for (int n = 0; n < c.bytes / 4; ++n) {
        float sum;
        __builtin_memcpy(&sum, c.data[m] + 4 * n, 4);
        sum = flushed(flushed(sum) + flushed(even[n] + odd[n]));
        __builtin_memcpy(c.data[m] + 4 * n, &sum, 4);
      }
    }
  }

  static void clear(Register& r) { __builtin_memset(r.data, 0, sizeof r.data); }

  // Denormals are zeros, as operands and as results.
  static float flushed(float x) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, 4);
    if ((bits & 0x7f800000) == 0) bits &= 0x80000000;
    __builtin_memcpy(&x, &bits, 4);
    return x;
  }

  static float half(const Register& r, int row, int at) {
    uint16_t high;
    __builtin_memcpy(&high, r.data[row] + 2 * at, 2);
    const uint32_t bits = static_cast<uint32_t>(high) << 16;
    float x;
    __builtin_memcpy(&x, &bits, 4);
    return flushed(x);
  }

  Register registers_[8];
};

}  // namespace
}  // namespace fedsparse
