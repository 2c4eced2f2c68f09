// Rows and lines of bfloat16 in vectors, under the rules of csrc/cpu/isa.
#pragma once

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../isa.h"

namespace fedsparse {
namespace {

typedef uint16_t Half __attribute__((vector_size(32)));   // a line: 16 images
typedef uint16_t Row __attribute__((vector_size(64)));    // a row of a tile: 16 pairs
typedef uint32_t Pairs __attribute__((vector_size(64)));  // the same
typedef float Single __attribute__((vector_size(64)));    // a line in fp32

typedef uint16_t LooseHalf __attribute__((vector_size(32), aligned(2), may_alias));
typedef uint16_t LooseRow __attribute__((vector_size(64), aligned(2), may_alias));
typedef float LooseSingle __attribute__((vector_size(64), aligned(4), may_alias));

inline Half load_half(const Bf16* from) { return *reinterpret_cast<const LooseHalf*>(from); }
inline void store_half(Bf16* to, Half h) { *reinterpret_cast<LooseHalf*>(to) = h; }
inline Row load_row(const Bf16* from) { return *reinterpret_cast<const LooseRow*>(from); }
inline void store_row(Bf16* to, Row r) { *reinterpret_cast<LooseRow*>(to) = r; }
inline Single load_single(const float* from) { return *reinterpret_cast<const LooseSingle*>(from); }
inline void store_single(float* to, Single s) { *reinterpret_cast<LooseSingle*>(to) = s; }

inline Pairs as_pairs(Row r) { return reinterpret_cast<Pairs>(r); }
inline Row as_row(Pairs p) { return reinterpret_cast<Row>(p); }

inline Row joined(Half a, Half b) {
#if defined(__AVX512F__)
  // GCC makes two permutations of what follows, and warns of the unmasked intrinsic.
  const __m512i low = _mm512_castsi256_si512(reinterpret_cast<__m256i>(a));
  return reinterpret_cast<Row>(_mm512_mask_inserti64x4(low, 0xff, low, reinterpret_cast<__m256i>(b), 1));
#else
  return __builtin_shufflevector(a, b, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19,
                                 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30, 31);
#endif
}

// a[0] b[0] a[1] b[1] ...
inline Row interleaved(Half a, Half b) {
  return __builtin_shufflevector(joined(a, b), Row{}, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23,
                                 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// The way back: a, then b.
inline Row separated(Row r) {
  return __builtin_shufflevector(r, Row{}, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 1, 3, 5,
                                 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

// The lines of two neighbours, or where only one is left, that and zeros.
inline Row load_pixels(const Bf16* from, int64_t left) {
  return left > 1 ? load_row(from) : joined(load_half(from), Half{});
}

// To the nearest bfloat16, ties to even; NaN stays NaN.
inline Half rounded(Single x) {
  const Pairs bits = reinterpret_cast<Pairs>(x);
  const Pairs up = bits + 0x7fffu + ((bits >> 16) & 1u);
  const Pairs number = (bits & 0x7fffffffu) > 0x7f800000u ? (bits | 0x400000u) : up;
  return __builtin_convertvector(number >> 16, Half);
}

// Lane j of a where bit D of j is clear and lane j - D of b where it is set, and the other half.
template <int D>
inline void cross(Pairs& a, Pairs& b) {
  Pairs low, high;
  for (uint32_t j = 0; j < 16; ++j) {
    low[j] = (j & D) ? 16 + j - D : j;
    high[j] = (j & D) ? 16 + j : j + D;
  }
#if defined(__clang__)
  Pairs first, second;
  for (int j = 0; j < 16; ++j) {
    first[j] = low[j] < 16 ? a[low[j]] : b[low[j] - 16];
    second[j] = high[j] < 16 ? a[high[j]] : b[high[j] - 16];
  }
#else
  const Pairs first = __builtin_shuffle(a, b, low), second = __builtin_shuffle(a, b, high);
#endif
  a = first;
  b = second;
}

template <int D>
inline void transpose_blocks(Pairs (&rows)[16]) {
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i)
    if ((i & D) == 0) cross<D>(rows[i], rows[i + D]);
  if constexpr (D > 1) transpose_blocks<D / 2>(rows);
}

#if !defined(__AVX512F__)
// Each shuffle is many instructions there.
__attribute__((noinline))
#else
inline
#endif
void transpose(Pairs (&rows)[16]) {
  transpose_blocks<8>(rows);
}

}  // namespace
}  // namespace fedsparse
