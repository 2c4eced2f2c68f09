// Compiled once for each instruction set, with -DFEDSPARSE_ISA=<name> and that set's flags.  Everything but
// the table at the foot has internal linkage, and no standard header with inline code is included: a function
// shared with another object file could otherwise be linked in with instructions that this machine lacks.
#include "../isa.h"

#if defined(__clang__)
#include <utility>
#endif

namespace fedsparse {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
constexpr int kTilePixels = 16;  // accumulators of one tile; 32 registers
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
constexpr int kTilePixels = 8;  // 16 registers
#else
constexpr int kVectorBytes = 16;
constexpr int kTilePixels = 8;
#endif

template <int Bytes>
struct IntegerOf;
template <>
struct IntegerOf<4> {
  typedef int32_t type;
};
template <>
struct IntegerOf<8> {
  typedef int64_t type;
};

template <typename T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes)));
  typedef typename IntegerOf<sizeof(T)>::type index __attribute__((vector_size(kVectorBytes)));
  typedef T loose __attribute__((vector_size(kVectorBytes), aligned(sizeof(T)), may_alias));
};
template <typename T>
using Vec = typename VectorOf<T>::type;

template <typename T>
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(T));
template <typename T>
constexpr int kLine = static_cast<int>(kLanes<T>);

template <typename T>
inline Vec<T> load(const T* from) {
  return *reinterpret_cast<const typename VectorOf<T>::loose*>(from);
}

template <typename T>
inline void store(T* to, Vec<T> v) {
  *reinterpret_cast<typename VectorOf<T>::loose*>(to) = v;
}

template <typename T>
inline Vec<T> broadcast(T value) {
  return value - Vec<T>{};
}

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

// Bands of 4 make the squarest rectangles, which read the fewest input pixels; maps too low for them take
// wider bands, and bands of 7 serve the widths 7 and 14 of ImageNet's maps.
template <typename Tile>
void cover(const Tile& tile, int64_t height, int64_t width) {
  int64_t x = 0;
  if constexpr (kTilePixels >= 16)
    for (; height < 2 && x + 16 <= width; x += 16) band<16>(tile, height, x);
  const bool sevens = width % 7 == 0 && width % 4 != 0 && height * 7 >= kTilePixels / 2;
  for (; sevens && x + 7 <= width; x += 7) band<7>(tile, height, x);
  for (; height < kTilePixels / 4 && x + 8 <= width; x += 8) band<8>(tile, height, x);
  for (; x + 4 <= width; x += 4) band<4>(tile, height, x);
  for (; x + 2 <= width; x += 2) band<2>(tile, height, x);
  for (; x < width; ++x) band<1>(tile, height, x);
}

// ---- gather: forward and gradient to the input
// ------------------------------------------------------------------

template <typename T>
struct GatherTile {
  const Gather<T>& g;
  int64_t row_begin, row_end;

  // All rows go by under one block of channels of one rectangle of pixels.
  template <int TH, int TW>
  void run(int64_t y, int64_t x) const {
    const T* in = g.in + y * g.in_row + x * kLine<T>;
    T* out = g.out + y * g.out_row + x * g.out_col;
    for (int64_t block = 0; block < g.blocks.count; ++block)
      for (int64_t row = row_begin; row < row_end; ++row) {
        const int32_t* begin = g.blocks.begin + row * (g.blocks.count + 1) + block;
        if (block > 0 && begin[0] == begin[1]) continue;
        const T bias = g.bias ? g.bias[row] : T(0);
        for (int lane = 0; lane < kLine<T>; lane += kWidth<T>)
          one<TH, TW>(g.taps + begin[0], g.taps + begin[1], block == 0, bias, in + lane,
                      out + row * g.out_channel + lane);
      }
  }

  // The accumulators stay in registers while the taps of one row stream by.
  template <int TH, int TW>
  inline void one(const Tap<T>* tap, const Tap<T>* end, bool first, T bias, const T* in, T* out) const {
    const int64_t in_row = g.in_row, out_row = g.out_row, out_col = g.out_col;
    Vec<T> sum[TH * TW];
    if (first) {
#pragma GCC unroll 16
      for (int p = 0; p < TH * TW; ++p) sum[p] = broadcast(bias);
    } else {
#pragma GCC unroll 16
      for (int p = 0; p < TH * TW; ++p) sum[p] = load(out + p / TW * out_row + p % TW * out_col);
    }
    for (; tap < end; ++tap) {
      const T* line = in + tap->offset;
      const Vec<T> value = broadcast(tap->value);
#pragma GCC unroll 16
      for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
        for (int tx = 0; tx < TW; ++tx) sum[ty * TW + tx] += value * load(line + ty * in_row + tx * kLine<T>);
    }
#pragma GCC unroll 16
    for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
      for (int tx = 0; tx < TW; ++tx) store(out + ty * out_row + tx * out_col, sum[ty * TW + tx]);
  }
};

template <typename T>
void gather(const Gather<T>& g, int64_t row_begin, int64_t row_end) {
  cover(GatherTile<T>{g, row_begin, row_end}, g.height, g.width);
}

// ---- shuffles
// ----------------------------------------------------------------------------------------------------

// Lane j of the result is lane Lane::of(j) of a followed by b.
#if defined(__clang__)
template <typename Lane, typename T, int... J>
inline Vec<T> shuffle_lanes(Vec<T> a, Vec<T> b, std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, Lane::of(J)...);
}
template <typename Lane, typename T>
inline Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  return shuffle_lanes<Lane, T>(a, b, std::make_integer_sequence<int, kWidth<T>>{});
}
#else
template <typename Lane, typename T>
inline Vec<T> shuffle(Vec<T> a, Vec<T> b) {
  typename VectorOf<T>::index lanes;
#pragma GCC unroll 16
  for (int j = 0; j < kWidth<T>; ++j) lanes[j] = Lane::of(j);
  return __builtin_shuffle(a, b, lanes);
}
#endif

// Lanes of a where bit D of the lane number is clear, of b where it is set.
template <int D, int Width>
struct Straight {
  static constexpr int of(int j) { return (j & D) ? Width + j : j; }
};

// The other half: a[j + D] where bit D of j is clear, b[j - D] where it is set.
template <int D, int Width>
struct Crossed {
  static constexpr int of(int j) { return (j & D) ? Width + j - D : j + D; }
};

// The two halves of a transpose: the lanes with bit D clear of both, and those with it set.
template <int D, int Width>
struct Low {
  static constexpr int of(int j) { return (j & D) ? Width + j - D : j; }
};
template <int D, int Width>
struct High {
  static constexpr int of(int j) { return (j & D) ? Width + j : j + D; }
};

// r[0] of the result holds, in lane j, the sum of the lanes of r[j].
template <int D, typename T>
inline void sum_lanes(Vec<T> (&r)[kWidth<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < D; ++i)
    r[i] = shuffle<Straight<D, kWidth<T>>, T>(r[i], r[i + D]) +
           shuffle<Crossed<D, kWidth<T>>, T>(r[i], r[i + D]);
  if constexpr (D > 1) sum_lanes<D / 2, T>(r);
}

// Swaps bit D of the row with bit D of the lane, for D and every smaller power of two: a transpose.
template <int D, typename T>
inline void transpose(Vec<T> (&r)[kWidth<T>]) {
#pragma GCC unroll 16
  for (int i = 0; i < kWidth<T>; ++i) {
    if (i & D) continue;
    const Vec<T> a = r[i], b = r[i + D];
    r[i] = shuffle<Low<D, kWidth<T>>, T>(a, b);
    r[i + D] = shuffle<High<D, kWidth<T>>, T>(a, b);
  }
  if constexpr (D > 1) transpose<D / 2, T>(r);
}

// ---- sample: gradient at the active weights
// ----------------------------------------------------------------------

// The rectangle's gradients stay in registers while the row's active weights stream by, a few at a time; each
// weight's sum waits in scratch, one vector, for the next rectangle.
template <typename T>
struct SampleTile {
  const Sample<T>& s;
  int64_t row_begin, row_end;

  template <int TH, int TW>
  void run(int64_t y, int64_t x) const {
    const T* in = s.in + y * s.in_row + x * kLine<T>;
    const T* grad = s.grad + y * s.grad_row + x * kLine<T>;
    const int32_t origin = s.blocks.begin[row_begin * (s.blocks.count + 1)];
    for (int64_t block = 0; block < s.blocks.count; ++block)
      for (int64_t row = row_begin; row < row_end; ++row) {
        const int32_t* begin = s.blocks.begin + row * (s.blocks.count + 1) + block;
        if (begin[0] == begin[1]) continue;
        for (int lane = 0; lane < kLine<T>; lane += kWidth<T>)
          one<TH, TW>(s.offsets + begin[0], s.offsets + begin[1], in + lane,
                      grad + row * s.grad_channel + lane, s.scratch + (begin[0] - origin) * kWidth<T>);
      }
  }

  template <int TH, int TW>
  inline void one(const int32_t* offset, const int32_t* end, const T* in, const T* grad, T* sums) const {
    Vec<T> held[TH * TW];
#pragma GCC unroll 16
    for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
      for (int tx = 0; tx < TW; ++tx) held[ty * TW + tx] = load(grad + ty * s.grad_row + tx * kLine<T>);
    constexpr int kGroup = kTilePixels / 2;
    for (; offset + kGroup <= end; offset += kGroup, sums += kGroup * kWidth<T>)
      few<TH, TW, kGroup>(offset, in, held, sums);
    for (; offset < end; ++offset, sums += kWidth<T>) few<TH, TW, 1>(offset, in, held, sums);
  }

  template <int TH, int TW, int G>
  inline void few(const int32_t* offset, const T* in, const Vec<T> (&held)[TH * TW], T* sums) const {
    const int64_t in_row = s.in_row;
    Vec<T> sum[G];
#pragma GCC unroll 16
    for (int g = 0; g < G; ++g) sum[g] = load(sums + g * kWidth<T>);
#pragma GCC unroll 16
    for (int ty = 0; ty < TH; ++ty)
#pragma GCC unroll 16
      for (int tx = 0; tx < TW; ++tx)
#pragma GCC unroll 16
        for (int g = 0; g < G; ++g)
          sum[g] += held[ty * TW + tx] * load(in + offset[g] + ty * in_row + tx * kLine<T>);
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
void sample(const Sample<T>& s, int64_t row_begin, int64_t row_end) {
  const auto begin = [&](int64_t row) { return s.blocks.begin[row * (s.blocks.count + 1)]; };
  const auto end = [&](int64_t row) { return s.blocks.begin[row * (s.blocks.count + 1) + s.blocks.count]; };
  // As many rows at a time as scratch holds the sums of.
  for (int64_t first = row_begin, last; first < row_end; first = last) {
    last = first + 1;
    while (last < row_end && end(last) - begin(first) <= s.scratch_count) ++last;
    const int64_t count = end(last - 1) - begin(first);
    for (int64_t i = 0; i < count; ++i) store(s.scratch + i * kWidth<T>, Vec<T>{});
    cover(SampleTile<T>{s, first, last}, s.height, s.width);
    add_sums(s.scratch, count, s.gradient + begin(first));
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

}  // namespace

#define FEDSPARSE_JOIN(a, b) a##b
#define FEDSPARSE_TABLE(name) FEDSPARSE_JOIN(kIsa_, name)
#define FEDSPARSE_TEXT(name) #name
#define FEDSPARSE_NAME(name) FEDSPARSE_TEXT(name)

extern const Isa FEDSPARSE_TABLE(FEDSPARSE_ISA) = {
    FEDSPARSE_NAME(FEDSPARSE_ISA), table<float>(), table<double>(), {kTilePixels / 4, 4}, &fill_offsets};

}  // namespace fedsparse
