// The kernels that are compiled once for each instruction set, and the choice between them.
//
// Blocked layout: 64 bytes of images innermost, so that a "line" holds kLanes<T> images (16 in fp32, 8 in
// fp64) of one pixel of one channel.  All offsets and strides below count elements and are multiples of a
// line.
#pragma once

#include <cstdint>

namespace fedsparse {

template <typename T>
inline constexpr int64_t kLanes = 64 / static_cast<int64_t>(sizeof(T));

// bfloat16: the upper half of a float's bits.  A line holds as many images as in fp32, in 32 bytes (amx.h).
struct Bf16 {
  uint16_t bits;
};
template <>
inline constexpr int64_t kLanes<Bf16> = 16;
template <>
inline constexpr int64_t kLanes<const Bf16> = kLanes<Bf16>;

// One active weight as the gather kernel reads it: where its input line lies, from the pixel's own address.
template <typename T>
struct Tap {
  int32_t offset;
  T value;
};

// The taps of row r that read channel block b are those from begin[r * (count + 1) + b] to the next entry.
// Blocks only order the work, so that one block's input stays in the nearest cache while all rows read it:
// the taps of a row are summed in the same order for any number of blocks.
struct Blocks {
  const int32_t* begin;
  int64_t count;
};

// The taps of all rows.
template <typename T>
struct Taps {
  Blocks blocks;
  const Tap<T>* taps;
};

// out[row][y][x] = bias[row] + sum over the row's taps of value * in[offset + y * in_row + x * line].
// bias may be null.
template <typename T>
struct Gather {
  const T *bias, *in;
  int64_t in_row;
  T* out;
  int64_t out_channel, out_row, out_col;
  int64_t height, width;
};

// The offsets of all rows; scratch holds scratch_count lines, at least as many as the longest row has active
// weights.
template <typename T>
struct Places {
  Blocks blocks;
  const int32_t* offsets;
  T* scratch;
  int64_t scratch_count;
};

// gradient[j] += sum over pixels and images of grad[row of j][y][x] * in[offsets[j] + y * in_row + x * line].
template <typename T>
struct Sample {
  const T* in;
  int64_t in_row;
  const T* grad;
  int64_t grad_channel, grad_row;
  int64_t height, width;
};

// One plane of up to kLanes images between rows of pixels (image i at images + i * image_stride) and lines.
struct Plane {
  int64_t image_stride;
  int64_t valid;  // images present; the other lanes are written as zero and not read back
  int64_t pixels;
};

// Pixels of the rectangle that the kernels hold in registers on a map of at least that size.
struct TileShape {
  int64_t height, width;
};

template <typename T>
struct Kernels {
  // taps[j] = {table[cols[j]], values[perm[j]]}, or values[j] where perm is null.
  void (*fill_taps)(const int32_t* cols, const int32_t* table, const T* values, const int32_t* perm,
                    int64_t count, Tap<T>* taps);
  void (*gather)(const Gather<T>&, const Taps<T>&, int64_t row_begin, int64_t row_end);
  void (*sample)(const Sample<T>&, const Places<T>&, T* gradient, int64_t row_begin, int64_t row_end);
  // Pixel p goes to line place[p], or to line p where place is null; a negative place drops the pixel.
  void (*to_lines)(const Plane&, const T* images, const int32_t* place, T* lines);
  void (*from_lines)(const Plane&, const T* lines, T* images);
};

// Rows of n floats without their zeros: a bitmap (bits.h) of what is not 0, and those values in order. Null
// where the instruction set has no shuffle to do it with.
struct Zeros {
  int64_t (*count_set)(const float* x, int64_t n) = nullptr;
  void (*compress)(const float* x, int64_t n, uint8_t* bits, float* values, int64_t kept) = nullptr;
  void (*expand)(const uint8_t* bits, const float* values, int64_t kept, int64_t n, float* x) = nullptr;
  void (*expand_bfloat16)(const uint8_t* bits, const uint16_t* values, int64_t kept, int64_t n,
                          float* x) = nullptr;
};

// Blocks of 16 images in fp32, one image a lane; lanes from `valid` on have none.
struct Lanes {
  const float* data;
  int64_t lines, valid;
};

// What is kept of each lane: the magnitudes, as integers, above `above`, and the first `ties` that equal it;
// `kept` of all lanes.
struct Chosen {
  int32_t above[16];
  int32_t ties[16];
  int64_t kept;
};

// Where to look for the `count` largest of each lane: in a sample of that many lines (0: in all) between the
// ranks `first` and `last`, with room for that many of each lane between them.
struct Sampling {
  int64_t lines;
  int32_t first, last;
  int64_t room;
};

// Null where the instruction set has no shuffle to do it with.
struct Largest {
  // scratch: room for 16 * max(sampling.lines, sampling.room) integers.
  void (*select)(const Lanes&, int64_t count, const Sampling&, int32_t* scratch, Chosen&) = nullptr;
  // bits: two bytes a line; values: room for those that are kept.
  void (*write)(const Lanes&, const Chosen&, uint8_t* bits, float* values) = nullptr;
  void (*write_bfloat16)(const Lanes&, const Chosen&, uint8_t* bits, uint16_t* values) = nullptr;
};

// One bit an element (bits.h), of elements that are whole bytes of bits.
struct Flags {
  // Set where y is not (at most 0 or at least the limit).
  void (*set)(const float* y, int64_t n, float limit, uint8_t* bits) = nullptr;
  // x where the bit is set, else 0; out may be x.
  void (*choose)(const float* x, const uint8_t* bits, int64_t n, float* out) = nullptr;
};

struct Isa {
  const char* name;
  Kernels<float> single;
  Kernels<double> twice;
  TileShape tile;
  // offsets[j] = table[cols[j]]
  void (*fill_offsets)(const int32_t* cols, const int32_t* table, int64_t count, int32_t* offsets);
  Zeros zeros;
  Largest largest;
  Flags flags;
};

extern const Isa kIsa_portable;
#if defined(FEDSPARSE_X86)
extern const Isa kIsa_avx2;
extern const Isa kIsa_avx512;
#endif

const Isa& chosen_isa();

template <typename T>
const Kernels<T>& kernels();

}  // namespace fedsparse
