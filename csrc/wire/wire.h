// Host-side primitives of the wire codec. All buffers are little-endian; every function stays inside the
// lengths it is given and throws std::invalid_argument (ValueError in Python) on data that breaks its
// contract.
#pragma once

#include <cstddef>
#include <cstdint>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the wire format is little-endian and this code copies words as they are"
#endif

// One source, compiled for AVX2 and for every x86-64; the build forbids contraction to fused operations, so
// that both round alike.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define FEDSPARSE_CLONES __attribute__((target_clones("avx2", "default")))
#else
#define FEDSPARSE_CLONES
#endif

namespace fedsparse::wire {

// CRC-32C (Castagnoli, reflected polynomial 0x82F63B78). `seed` is the checksum of what went before.
uint32_t crc32c(const uint8_t* data, size_t length, uint32_t seed);
uint32_t crc32c_portable(const uint8_t* data, size_t length, uint32_t seed);
bool crc32c_has_hardware();
// Copies and checks in one pass over memory; `out` must not overlap `data`.
uint32_t copy_crc32c(const uint8_t* data, size_t length, uint32_t seed, uint8_t* out);

// Bit k of byte j stands for element 8 * j + k; the unused bits of the last byte are zero.
void pack_bits(const uint8_t* mask, size_t size, uint8_t* bits);
void unpack_bits(const uint8_t* bits, size_t length, size_t size, uint8_t* mask);
size_t count_bits(const uint8_t* bits, size_t length);

// Strictly increasing indices in [0, size): the gap to the successor of the previous index, as LEB128.
size_t delta_length(const int64_t* indices, size_t count, int64_t size);
void delta_encode(const int64_t* indices, size_t count, uint8_t* out, size_t capacity);
void delta_decode(const uint8_t* data, size_t length, size_t count, int64_t size, int64_t* indices);
void bits_from_indices(const int64_t* indices, size_t count, int64_t size, uint8_t* bits);
void indices_from_bits(const uint8_t* bits, size_t length, int64_t size, size_t count, int64_t* indices);

// The same indices by adaptive Golomb-Rice coding of their gaps: close to the entropy of a random mask. A gap
// is its quotient by 2^k in unary (zeros, then a one), then its k low bits, lowest bit first; the last byte
// is filled with zeros. `indices` must have passed `delta_length`.
size_t rice_length(const int64_t* indices, size_t count, int64_t size);
void rice_encode(const int64_t* indices, size_t count, int64_t size, uint8_t* out, size_t capacity);
void rice_decode(const uint8_t* data, size_t length, size_t count, int64_t size, int64_t* indices);

// Stochastic rounding to q in [-127, 127] with value ~ q * scale, scale = largest magnitude / 127, which is
// returned. The draw at element i depends on (seed, first + i) only. Throws on a value that is not finite.
float quantise(const float* values, size_t count, uint64_t seed, size_t first, int8_t* out);
// Throws on q = -128 and on a scale that is negative or not finite.
void dequantise(const int8_t* quantised, size_t count, float scale, float* values);

// The largest |value|; NaN where there is one, 0 of nothing.
float magnitude(const float* values, size_t count);

// sums += rint(values * scale), ties to even; |values * scale| must be below 2^63.
void add_fixed(int64_t* sums, const float* values, size_t count, double scale);

// Whether no float of this bit pattern is infinite or NaN; `infinity` is the pattern of +inf.
template <typename Bits>
bool all_finite(const Bits* bits, size_t length, Bits infinity) {
  constexpr Bits sign = static_cast<Bits>(Bits{1} << (8 * sizeof(Bits) - 1));
  const Bits magnitude = static_cast<Bits>(~sign), lift = static_cast<Bits>(sign - infinity);
  Bits seen = 0;
  // Adding `lift` carries into the sign bit exactly when the magnitude is at least infinity.
  for (size_t i = 0; i < length; ++i) seen |= static_cast<Bits>((bits[i] & magnitude) + lift);
  return (seen & sign) == 0;
}

}  // namespace fedsparse::wire
