// Rows of floats without their zeros: a bitmap of what is not 0, and those values in order. Included by
// kernels.cpp, under its rules. Nothing is read or written beyond the values that a row has, since rows lie
// side by side.
#pragma once

#include <immintrin.h>  // its functions are inlined always, so none is shared
#include <stdint.h>

namespace fedsparse {
namespace {

constexpr int kByte = 8;

// All bits but the sign.
inline uint32_t magnitude_bits(const float* x) {
  uint32_t bits;
  __builtin_memcpy(&bits, x, sizeof bits);
  return bits & 0x7fffffffu;
}

// The flags of at most 8 floats.
inline uint32_t flags_of(const float* x, int64_t count) {
  uint32_t flags = 0;
  for (int64_t i = 0; i < count; ++i) flags |= static_cast<uint32_t>(magnitude_bits(x + i) != 0) << i;
  return flags;
}

inline float* copy_set(const float* x, uint32_t flags, float* values) {
  for (; flags; flags &= flags - 1) *values++ = x[__builtin_ctz(flags)];
  return values;
}

inline float one_float(float x) { return x; }
inline float one_float(uint16_t bfloat16) {
  const uint32_t bits = uint32_t{bfloat16} << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

template <typename Stored>
inline const Stored* place_set(const Stored* values, uint32_t flags, int64_t count, float* x) {
  for (int64_t i = 0; i < count; ++i) x[i] = (flags >> i & 1) ? one_float(*values++) : 0.0f;
  return values;
}

// For each byte of flags: where its set bits are, in order; and of each bit how many lower ones are set.
struct ByteTable {
  alignas(64) uint8_t set[256][kByte] = {};
  alignas(64) uint8_t rank[256][kByte] = {};
  constexpr ByteTable() {
    for (int flags = 0; flags < 256; ++flags)
      for (int i = 0, found = 0; i < kByte; ++i) {
        rank[flags][i] = static_cast<uint8_t>(found < kByte ? found : 0);
        if (flags >> i & 1) set[flags][found++] = static_cast<uint8_t>(i);
      }
  }
};
constexpr ByteTable kByteTable;

inline __m256i permutation(const uint8_t* eight) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(eight)));
}

inline uint32_t eight_flags(const float* x) {
  const __m256i magnitude = _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)),
                                             _mm256_set1_epi32(0x7fffffff));
  const __m256i zero = _mm256_cmpeq_epi32(magnitude, _mm256_setzero_si256());
  return ~static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(zero))) & 0xffu;
}

int64_t count_set(const float* x, int64_t n) {
  int64_t count = 0, i = 0;
  for (; i + kByte <= n; i += kByte) count += __builtin_popcount(eight_flags(x + i));
  return count + __builtin_popcount(flags_of(x + i, n - i));
}

// bits: ceil(n / 8) bytes; values: room for those that are not 0, `kept` of them.
void compress(const float* x, int64_t n, uint8_t* bits, float* values, int64_t kept) {
  int64_t i = 0;
  for (const float* end = values + kept; i + kByte <= n && values + kByte <= end; i += kByte) {
    const uint32_t flags = eight_flags(x + i);
    bits[i / kByte] = static_cast<uint8_t>(flags);
    _mm256_storeu_ps(values,
                     _mm256_permutevar8x32_ps(_mm256_loadu_ps(x + i), permutation(kByteTable.set[flags])));
    values += __builtin_popcount(flags);
  }
  for (; i < n; i += kByte) {
    const uint32_t flags = flags_of(x + i, n - i < kByte ? n - i : kByte);
    bits[i / kByte] = static_cast<uint8_t>(flags);
    values = copy_set(x + i, flags, values);
  }
}

inline __m256 eight_floats(const float* values) { return _mm256_loadu_ps(values); }
inline __m256 eight_floats(const uint16_t* bfloat16) {
  const __m128i eight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(bfloat16));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(eight), 16));
}

// All bits of a lane are set where its flag is.
inline __m256i flagged_lanes(uint32_t flags) {
  const __m256i ones = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  return _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(static_cast<int>(flags)), ones), ones);
}

// The inverse of compress, of values as floats or bfloat16: the bits are those of `kept` values.
template <typename Stored>
void expand(const uint8_t* bits, const Stored* values, int64_t kept, int64_t n, float* x) {
  int64_t i = 0;
  for (const Stored* end = values + kept; i + kByte <= n && values + kByte <= end; i += kByte) {
    const uint32_t flags = bits[i / kByte];
    const __m256 moved = _mm256_permutevar8x32_ps(eight_floats(values), permutation(kByteTable.rank[flags]));
    _mm256_storeu_ps(x + i, _mm256_and_ps(moved, _mm256_castsi256_ps(flagged_lanes(flags))));
    values += __builtin_popcount(flags);
  }
  for (; i < n; i += kByte) values = place_set(values, bits[i / kByte], n - i < kByte ? n - i : kByte, x + i);
}

}  // namespace
}  // namespace fedsparse
