// Tiles as the processor has them.  Registers are named in the instruction, so that each function picks its
// one of a few intrinsics by its template arguments.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace fedsparse {
namespace {

#define FEDSPARSE_TILES_OF(F) F(0) F(1) F(2) F(3) F(4) F(5) F(6) F(7)
#define FEDSPARSE_PRODUCTS_WITH(F, a, b) F(0, a, b) F(1, a, b) F(2, a, b) F(3, a, b)
#define FEDSPARSE_PRODUCTS_OF(F)   \
  FEDSPARSE_PRODUCTS_WITH(F, 4, 6) \
  FEDSPARSE_PRODUCTS_WITH(F, 4, 7) FEDSPARSE_PRODUCTS_WITH(F, 5, 6) FEDSPARSE_PRODUCTS_WITH(F, 5, 7)

// Registers 0 to 3 hold sums, 4 and 5 first operands, 6 and 7 second operands.
class Tiles {
 public:
  static constexpr const char* kName = "amx";

  explicit Tiles(int64_t depth) {
    struct alignas(64) {
      uint8_t palette, start_row, reserved[14];
      uint16_t bytes[16];
      uint8_t rows[16];
    } shapes = {1, 0, {}, {}, {}};
    static_assert(sizeof shapes == 64);
    for (int i = 0; i < 8; ++i) {
      shapes.rows[i] = static_cast<uint8_t>(i < 6 ? 16 : depth / 2);
      shapes.bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? depth * 2 : 64);
    }
    written(&shapes);
    _tile_loadconfig(&shapes);
  }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  template <int I>
  void zero() {
#define FEDSPARSE_CASE(i) \
  if constexpr (I == i) _tile_zero(i);
    FEDSPARSE_TILES_OF(FEDSPARSE_CASE)
#undef FEDSPARSE_CASE
  }

  template <int I>
  void load(const void* from, int64_t stride) {
    written(from);
#define FEDSPARSE_CASE(i) \
  if constexpr (I == i) _tile_loadd(i, from, stride);
    FEDSPARSE_TILES_OF(FEDSPARSE_CASE)
#undef FEDSPARSE_CASE
  }

  template <int I>
  void store(void* to, int64_t stride) const {
#define FEDSPARSE_CASE(i) \
  if constexpr (I == i) _tile_stored(i, to, stride);
    FEDSPARSE_TILES_OF(FEDSPARSE_CASE)
#undef FEDSPARSE_CASE
  }

  template <int C, int A, int B>
  void multiply() {
    static_assert(C < 4 && (A == 4 || A == 5) && (B == 6 || B == 7));
#define FEDSPARSE_CASE(c, a, b) \
  if constexpr (C == c && A == a && B == b) _tile_dpbf16ps(c, a, b);
    FEDSPARSE_PRODUCTS_OF(FEDSPARSE_CASE)
#undef FEDSPARSE_CASE
  }

 private:
  // GCC's intrinsics do not say what memory they read: what was written must have been.
  static void written(const void* at) { asm volatile("" : : "r"(at) : "memory"); }
};

#undef FEDSPARSE_PRODUCTS_OF
#undef FEDSPARSE_PRODUCTS_WITH
#undef FEDSPARSE_TILES_OF

}  // namespace
}  // namespace fedsparse
