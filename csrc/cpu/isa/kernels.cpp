// Compiled once for each instruction set, with -DFEDSPARSE_ISA=<name> and that set's flags.  Everything but
// the table at the foot has internal linkage, and no standard header with inline code is included: a function
// shared with another object file could otherwise be linked in with instructions that this machine lacks.
#include "../isa.h"
#include "../shuffle.h"
#if defined(__AVX2__)
#include "flags.h"
#include "largest.h"
#include "zeros.h"
#endif

namespace fedsparse {
namespace {

// Lines that the accumulators of one tile hold: 16 vectors of 32 registers, or 8 of 16.
constexpr int kTilePixels = kVectorSize == 64 ? 16 : kVectorSize == 32 ? 4 : 2;

template <typename T>
using Vec = typename Vector<T>::type;
template <typename T>
constexpr int kWidth = Vector<T>::kWidth;
template <typename T>
constexpr int kLine = static_cast<int>(kLanes<T>);
template <typename T>
constexpr int kParts = kLine<T> / kWidth<T>;  // vectors of one line

// Rows whose tiles are kept side by side.
constexpr int kSumRows = 32;

// ---- tiles: rectangles of at most kTilePixels pixels that cover height x width
// -----------------------------------

// Calls tile.run<TH, TW>(y, x) for each rectangle of one band of width TW.
template <int TW, typename Tile>
void band(const Tile& tile, int64_t height, int64_t x) {
  constexpr int kHigh = kTilePixels / TW;
  int64_t y = 0;
  if constexpr (kHigh >= 16)
    for (; y + 16 <= height; y += 16) tile.template run<16, TW>(y, x);
  if constexpr (kHigh >= 8)
    for (; y + 8 <= height; y += 8) tile.template run<8, TW>(y, x);
  if constexpr (kHigh >= 4)
    for (; y + 4 <= height; y += 4) tile.template run<4, TW>(y, x);
  if constexpr (kHigh >= 2)
    for (; y + 2 <= height; y += 2) tile.template run<2, TW>(y, x);
  for (; y < height; ++y) tile.template run<1, TW>(y, x);
}

// The squarest rectangles, which read the fewest input pixels; maps too low for them take wider bands, and
// bands of 7 serve the widths 7 and 14 of ImageNet's maps.
template <typename Tile>
void cover(const Tile& tile, int64_t height, int64_t width) {
  constexpr int kSide = kTilePixels >= 16 ? 4 : 2;
  int64_t x = 0;
  if constexpr (kTilePixels >= 16) {
    for (; height < 2 && x + 16 <= width; x += 16) band<16>(tile, height, x);
    const bool sevens = width % 7 == 0 && width % 4 != 0 && height >= 2;
    for (; sevens && x + 7 <= width; x += 7) band<7>(tile, height, x);
    for (; height < 4 && x + 8 <= width; x += 8) band<8>(tile, height, x);
  }
  if constexpr (kTilePixels >= 4)
    for (; (kSide == 4 || height < 2) && x + 4 <= width; x += 4) band<4>(tile, height, x);
  for (; x + 2 <= width; x += 2) band<2>(tile, height, x);
  for (; x < width; ++x) band<1>(tile, height, x);
}

// ---- gather: forward and gradient to the input
// ------------------------------------------------------------------

template <typename T>
struct GatherTile {
  const Gather<T>& g;
  const Taps<T>& all;
  int64_t row_begin, row_end;

  // Rows go by, kSumRows at a time, under one block of channels of one rectangle of pixels.  Between blocks
  // their sums wait side by side in `sums`: at their places in `out` they would share few of the cache's
  // sets.
  template <int TH, int TW>
  void run(int64_t y, int64_t x) const {
    constexpr int kSums = TH * TW * kLine<T>;
    alignas(64) T sums[kSumRows * kSums];
    const T* in = g.in + y * g.in_row + x * kLine<T>;
    T* out = g.out + y * g.out_row + x * g.out_col;
    for (int64_t first = row_begin; first < row_end; first += kSumRows) {
      const int64_t last = first + kSumRows < row_end ? first + kSumRows : row_end;
      for (int64_t block = 0; block < all.blocks.count; ++block)
        for (int64_t row = first; row < last; ++row) {
          const int32_t* begin = all.blocks.begin + row * (all.blocks.count + 1) + block;
          const bool ends = block == all.blocks.count - 1;
          if (block > 0 && !ends && begin[0] == begin[1]) continue;
          const T bias = g.bias ? g.bias[row] : T(0);
          one<TH, TW>(all.taps + begin[0], all.taps + begin[1], block == 0, ends, bias, in,
                      sums + (row - first) * kSums, out + row * g.out_channel);
        }
    }
  }

  // The accumulators stay in registers while the taps of one row stream by.
  template <int TH, int TW>
  inline void one(const Tap<T>* tap, const Tap<T>* end, bool fresh, bool ends, T bias, const T* in, T* sums,
                  T* out) const {
    constexpr int kAcross = TW * kParts<T>;  // vectors of one row of pixels
    const int64_t out_row = g.out_row, out_col = g.out_col;
    const T* rows[TH];
    Vec<T> sum[TH][kAcross];
#pragma GCC unroll 16
    for (int ty = 0; ty < TH; ++ty) {
      rows[ty] = in + ty * g.in_row;
#pragma GCC unroll 16
      for (int i = 0; i < kAcross; ++i)
        sum[ty][i] = fresh ? broadcast(bias) : load(sums + (ty * kAcross + i) * kWidth<T>);
    }
    for (; tap < end; ++tap) {
      const int64_t offset = tap->offset;
      const Vec<T> value = broadcast(tap->value);
#pragma GCC unroll 16
      for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
        for (int i = 0; i < kAcross; ++i) sum[ty][i] += value * load(rows[ty] + offset + i * kWidth<T>);
    }
#pragma GCC unroll 16
    for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
      for (int i = 0; i < kAcross; ++i) {
        T* const place = out + ty * out_row + i / kParts<T> * out_col + i % kParts<T> * kWidth<T>;
        store(ends ? place : sums + (ty * kAcross + i) * kWidth<T>, sum[ty][i]);
      }
  }
};

template <typename T>
void gather(const Gather<T>& g, const Taps<T>& taps, int64_t row_begin, int64_t row_end) {
  cover(GatherTile<T>{g, taps, row_begin, row_end}, g.height, g.width);
}

// ---- sample: gradient at the active weights
// ----------------------------------------------------------------------

// The rectangle's gradients stay in registers while the row's active weights stream by, a few at a time; each
// weight's sum waits in scratch, one vector, for the next rectangle.
template <typename T>
struct SampleTile {
  const Sample<T>& s;
  const Places<T>& all;
  int64_t row_begin, row_end;

  // Rows go by, kSumRows at a time; their gradients of the rectangle are copied side by side first, since at
  // their own places they share few of the cache's sets.
  template <int TH, int TW>
  void run(int64_t y, int64_t x) const {
    constexpr int kAcross = TW * kParts<T>;
    alignas(64) T grads[kSumRows * TH * kAcross * kWidth<T>];
    const T* in = s.in + y * s.in_row + x * kLine<T>;
    const T* grad = s.grad + y * s.grad_row + x * kLine<T>;
    const int32_t origin = all.blocks.begin[row_begin * (all.blocks.count + 1)];
    for (int64_t first = row_begin; first < row_end; first += kSumRows) {
      const int64_t last = first + kSumRows < row_end ? first + kSumRows : row_end;
      for (int64_t row = first; row < last; ++row)
        for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
          for (int i = 0; i < kAcross; ++i)
            store(grads + (((row - first) * TH + ty) * kAcross + i) * kWidth<T>,
                  load(grad + row * s.grad_channel + ty * s.grad_row + i * kWidth<T>));
      for (int64_t block = 0; block < all.blocks.count; ++block)
        for (int64_t row = first; row < last; ++row) {
          const int32_t* begin = all.blocks.begin + row * (all.blocks.count + 1) + block;
          if (begin[0] == begin[1]) continue;
          one<TH, TW>(all.offsets + begin[0], all.offsets + begin[1], in,
                      grads + (row - first) * TH * kAcross * kWidth<T>,
                      all.scratch + (begin[0] - origin) * kWidth<T>);
        }
    }
  }

  template <int TH, int TW>
  inline void one(const int32_t* offset, const int32_t* end, const T* in, const T* grad, T* sums) const {
    constexpr int kAcross = TW * kParts<T>;
    Vec<T> held[TH][kAcross];
#pragma GCC unroll 16
    for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
      for (int i = 0; i < kAcross; ++i) held[ty][i] = load(grad + (ty * kAcross + i) * kWidth<T>);
    constexpr int kGroup = kVectorSize == 64 ? 8 : 4;
    for (; offset + kGroup <= end; offset += kGroup, sums += kGroup * kWidth<T>)
      few<TH, kAcross, kGroup>(offset, in, held, sums);
    for (; offset < end; ++offset, sums += kWidth<T>) few<TH, kAcross, 1>(offset, in, held, sums);
  }

  template <int TH, int Across, int G>
  inline void few(const int32_t* offset, const T* in, const Vec<T> (&held)[TH][Across], T* sums) const {
    const int64_t in_row = s.in_row;
    const T* lines[G];
    Vec<T> sum[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) {
      lines[g] = in + offset[g];
      sum[g] = load(sums + g * kWidth<T>);
    }
#pragma GCC unroll 16
    for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
      for (int i = 0; i < Across; ++i)
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g) sum[g] += held[ty][i] * load(lines[g] + ty * in_row + i * kWidth<T>);
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) store(sums + g * kWidth<T>, sum[g]);
  }
};

template <typename T>
void add_sums(const T* sums, int64_t count, T* gradient) {
  int64_t j = 0;
  for (; j + kWidth<T> <= count; j += kWidth<T>) {
    Vec<T> r[kWidth<T>];
#pragma GCC unroll 16
    for (int i = 0; i < kWidth<T>; ++i) r[i] = load(sums + (j + i) * kWidth<T>);
    sum_lanes<kWidth<T> / 2, T>(r);
    store(gradient + j, load(gradient + j) + r[0]);
  }
  for (; j < count; ++j) {
    Vec<T> r[kWidth<T>] = {load(sums + j * kWidth<T>)};
    sum_lanes<kWidth<T> / 2, T>(r);
    gradient[j] += r[0][0];
  }
}

template <typename T>
void sample(const Sample<T>& s, const Places<T>& all, T* gradient, int64_t row_begin, int64_t row_end) {
  const auto begin = [&](int64_t row) { return all.blocks.begin[row * (all.blocks.count + 1)]; };
  const auto end = [&](int64_t row) {
    return all.blocks.begin[row * (all.blocks.count + 1) + all.blocks.count];
  };
  // As many rows at a time as scratch holds the sums of.
  for (int64_t first = row_begin, last; first < row_end; first = last) {
    last = first + 1;
    while (last < row_end && end(last) - begin(first) <= all.scratch_count) ++last;
    const int64_t count = end(last - 1) - begin(first);
    for (int64_t i = 0; i < count; ++i) store(all.scratch + i * kWidth<T>, Vec<T>{});
    cover(SampleTile<T>{s, all, first, last}, s.height, s.width);
    add_sums(all.scratch, count, gradient + begin(first));
  }
}

// ---- lists: plain loops, compiled here for the sake of the gather instructions
// ----------------------------------

template <typename T>
void fill_taps(const int32_t* __restrict cols, const int32_t* __restrict table, const T* __restrict values,
               const int32_t* __restrict perm, int64_t count, Tap<T>* __restrict taps) {
  if (perm)
    for (int64_t j = 0; j < count; ++j) taps[j] = {table[cols[j]], values[perm[j]]};
  else
    for (int64_t j = 0; j < count; ++j) taps[j] = {table[cols[j]], values[j]};
}

void fill_offsets(const int32_t* __restrict cols, const int32_t* __restrict table, int64_t count,
                  int32_t* __restrict offsets) {
  for (int64_t j = 0; j < count; ++j) offsets[j] = table[cols[j]];
}

// ---- layout
// ------------------------------------------------------------------------------------------------------

template <typename T>
void to_lines(const Plane& plane, const T* images, const int32_t* place, T* lines) {
  const auto line_of = [&](int64_t pixel) { return place ? place[pixel] : static_cast<int32_t>(pixel); };
  for (int64_t lane = 0; lane < kLine<T>; lane += kWidth<T>) {
    const T* source = images + lane * plane.image_stride;
    const int64_t valid = plane.valid - lane;
    int64_t pixel = 0;
    for (; pixel + kWidth<T> <= plane.pixels; pixel += kWidth<T>) {
      Vec<T> r[kWidth<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth<T>; ++i)
        r[i] = i < valid ? load(source + i * plane.image_stride + pixel) : Vec<T>{};
      transpose<kWidth<T> / 2, T>(r);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth<T>; ++i)
        if (line_of(pixel + i) >= 0) store(lines + int64_t(line_of(pixel + i)) * kLine<T> + lane, r[i]);
    }
    for (; pixel < plane.pixels; ++pixel) {
      if (line_of(pixel) < 0) continue;
      T* line = lines + int64_t(line_of(pixel)) * kLine<T> + lane;
      for (int i = 0; i < kWidth<T>; ++i) line[i] = i < valid ? source[i * plane.image_stride + pixel] : T(0);
    }
  }
}

template <typename T>
void from_lines(const Plane& plane, const T* lines, T* images) {
  for (int64_t lane = 0; lane < kLine<T>; lane += kWidth<T>) {
    T* target = images + lane * plane.image_stride;
    const int64_t valid = plane.valid - lane;
    int64_t pixel = 0;
    for (; pixel + kWidth<T> <= plane.pixels; pixel += kWidth<T>) {
      Vec<T> r[kWidth<T>];
#pragma GCC unroll 16
      for (int i = 0; i < kWidth<T>; ++i) r[i] = load(lines + (pixel + i) * kLine<T> + lane);
      transpose<kWidth<T> / 2, T>(r);
#pragma GCC unroll 16
      for (int i = 0; i < kWidth<T>; ++i)
        if (i < valid) store(target + i * plane.image_stride + pixel, r[i]);
    }
    for (; pixel < plane.pixels; ++pixel)
      for (int64_t i = 0; i < kWidth<T> && i < valid; ++i)
        target[i * plane.image_stride + pixel] = lines[pixel * kLine<T> + lane + i];
  }
}

template <typename T>
constexpr Kernels<T> table() {
  return {&fill_taps<T>, &gather<T>, &sample<T>, &to_lines<T>, &from_lines<T>};
}

#if defined(__AVX2__)
constexpr Zeros kZeros{&count_set, &compress, &expand<float>, &expand<uint16_t>};
constexpr Largest kLargest{&select_largest, &write_largest<float>, &write_largest<uint16_t>};
constexpr Flags kFlags{&set_flags, &choose_flagged};
#else
constexpr Zeros kZeros{};
constexpr Largest kLargest{};
constexpr Flags kFlags{};
#endif

}  // namespace

#define FEDSPARSE_JOIN(a, b) a##b
#define FEDSPARSE_TABLE(name) FEDSPARSE_JOIN(kIsa_, name)
#define FEDSPARSE_TEXT(name) #name
#define FEDSPARSE_NAME(name) FEDSPARSE_TEXT(name)

extern const Isa FEDSPARSE_TABLE(FEDSPARSE_ISA) = {
    FEDSPARSE_NAME(FEDSPARSE_ISA),
    table<float>(),
    table<double>(),
    {kTilePixels >= 16 ? 4 : kTilePixels / 2, kTilePixels >= 16 ? 4 : 2},
    &fill_offsets,
    kZeros,
    kLargest,
    kFlags};

}  // namespace fedsparse
