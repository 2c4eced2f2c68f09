// Compiled once for each instruction set, like kernels.cpp and under the same rules: internal linkage but for
// the table at the foot, no standard header with inline code.
#include "../strips.h"

#include "../shuffle.h"

namespace fedsparse {
namespace {

constexpr int kRows = static_cast<int>(kQuad);

template <typename T>
using Vec = typename Vector<T>::type;
template <typename T>
constexpr int kWidth = Vector<T>::kWidth;
template <typename T>
constexpr int kLine = static_cast<int>(kLanes<T>);

// Vectors of a line that are held at a time: all, where there are registers for four rows of them.
template <typename T>
constexpr int kParts = kLine<T> / kWidth<T> < 2 ? kLine<T> / kWidth<T> : 2;
// Lines of one tile: with kRows rows, 16 accumulators of 32 registers, or 8 of 16.
constexpr int kTile = kVectorSize == 64 ? 4 : 1;

// First-level cache that the weights and the lines of one run of entries may take.
constexpr int64_t kNear = 16 * 1024;

// ---- gather ---------------------------------------------------------------------------------------------

// One strip: a run of its entries at a time, so that its weights stay near while all pixels pass.
template <typename T>
struct StripGather {
  const Gather<T>& g;
  const Strips& strips;
  const T* packed;

  void strip(int64_t s) const {
    const int64_t begin = strips.starts[s], end = strips.starts[s + 1];
    const int64_t run =
        kNear / (kLine<T> * static_cast<int64_t>(sizeof(T)) + strips.rows * static_cast<int64_t>(sizeof(T)));
    int64_t first = begin;
    do {
      const int64_t last = end - first < 2 * run ? end : first + run;
      for (int64_t y = 0; y < g.height; ++y) row(s, first, last, y);
      first = last;
    } while (first < end);
  }

  void row(int64_t s, int64_t first, int64_t last, int64_t y) const {
    int64_t x = 0;
    for (; x + kTile <= g.width; x += kTile) tile<kTile>(s, first, last, y, x);
    for (; x < g.width; ++x) tile<1>(s, first, last, y, x);
  }

  template <int Lines>
  void tile(int64_t s, int64_t first, int64_t last, int64_t y, int64_t x) const {
    const int64_t begin = strips.starts[s], count = strips.starts[s + 1] - begin;
    const T* const in = g.in + y * g.in_row + x * kLine<T>;
    T* const out = g.out + s * strips.rows * g.out_channel + y * g.out_row + x * g.out_col;
    for (int64_t row = 0; row < strips.rows; row += kRows) {
      const T* weights = packed + begin * strips.rows + row * count + (first - begin) * kRows;
      const T* bias = g.bias ? g.bias + s * strips.rows + row : nullptr;
      for (int lane = 0; lane < kLine<T>; lane += kParts<T> * kWidth<T>)
        quad<Lines>(strips.offsets + first, strips.offsets + last, weights, first == begin, bias, in + lane,
                    out + row * g.out_channel + lane);
    }
  }

  // Four rows of Lines pixels stay in registers while the entries stream by.
  template <int Lines>
  inline void quad(const int32_t* offset, const int32_t* end, const T* weights, bool fresh, const T* bias,
                   const T* in, T* out) const {
    constexpr int kAcross = Lines * kParts<T>;
    const int64_t out_channel = g.out_channel, out_col = g.out_col;
    Vec<T> sum[kRows][kAcross];
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < kAcross; ++i)
        sum[r][i] = fresh ? broadcast(bias ? bias[r] : T(0))
                          : load(out + r * out_channel + i / kParts<T> * out_col + i % kParts<T> * kWidth<T>);
    for (; offset < end; ++offset, weights += kRows) {
      const T* const line = in + *offset;
      Vec<T> x[kAcross];
#pragma GCC unroll 4
      for (int i = 0; i < kAcross; ++i)
        x[i] = load(line + i / kParts<T> * kLine<T> + i % kParts<T> * kWidth<T>);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const Vec<T> weight = broadcast(weights[r]);
#pragma GCC unroll 4
        for (int i = 0; i < kAcross; ++i) sum[r][i] += weight * x[i];
      }
    }
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
      for (int i = 0; i < kAcross; ++i)
        store(out + r * out_channel + i / kParts<T> * out_col + i % kParts<T> * kWidth<T>, sum[r][i]);
  }
};

template <typename T>
void gather(const Gather<T>& g, const Strips& strips, const T* packed, int64_t strip_begin,
            int64_t strip_end) {
  const StripGather<T> all{g, strips, packed};
  for (int64_t s = strip_begin; s < strip_end; ++s) all.strip(s);
}

// ---- sample ---------------------------------------------------------------------------------------------

// Entries whose sums with four rows are held at a time: 16 accumulators of 32 registers; 12 of 16, or 8 where
// a product needs a register of its own.
constexpr int kEntries = kVectorSize == 64 ? 4 : kVectorSize == 32 ? 3 : 2;

// Lines of a rectangle of pixels, and rows whose gradients of it stay in the first-level cache.
constexpr int64_t kTileLines = 16, kNearRows = 16;

template <typename T>
struct StripSample {
  const Sample<T>& s;
  const Strips& strips;
  T* packed;

  // A rectangle of pixels: where it begins in the input and in the gradient, and its size.
  struct Rectangle {
    const T *in, *grad;
    int64_t height, width;
  };

  // The rows' gradients of the rectangle are copied side by side first, four rows a vector in turn: at their
  // own places, a power of two apart, they share few of the cache's sets and would come from the second level
  // each time.
  void rectangle(const Rectangle& r, int64_t strip) const {
    alignas(64) T grads[kNearRows * kTileLines * kLine<T>];
    const int64_t begin = strips.starts[strip], count = strips.starts[strip + 1] - begin;
    const int64_t quad = r.height * r.width * kLine<T> * kRows;
    if (count == 0) return;
    for (int64_t near = 0; near < strips.rows; near += kNearRows) {
      const int64_t far = near + kNearRows < strips.rows ? near + kNearRows : strips.rows;
      for (int64_t row = near; row < far; row += kRows)
        copy(r, r.grad + (strip * strips.rows + row) * s.grad_channel, grads + (row - near) / kRows * quad);
      for (int64_t j = 0; j < count; j += kEntries)
        for (int64_t row = near; row < far; row += kRows)
          few(strips.offsets + begin + j, count - j, r, grads + (row - near) / kRows * quad,
              packed + begin * strips.rows + row * count + j * kRows);
    }
  }

  inline void copy(const Rectangle& r, const T* from, T* to) const {
    const int64_t channel = s.grad_channel, span = r.width * kLine<T>;
    for (int64_t y = 0; y < r.height; ++y, from += s.grad_row)
      for (int64_t at = 0; at < span; at += kWidth<T>, to += kRows * kWidth<T>)
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) store(to + row * kWidth<T>, load(from + row * channel + at));
  }

  // kEntries entries (or the `left` last ones) by four rows, whose gradients are as `copy` lays them.
  inline void few(const int32_t* offsets, int64_t left, const Rectangle& r, const T* grads, T* sums) const {
    constexpr int kSums = kRows * kEntries;
    const int64_t in_row = s.in_row, span = r.width * kLine<T>;
    const T* lines[kEntries];
#pragma GCC unroll 4
    for (int e = 0; e < kEntries; ++e) lines[e] = r.in + offsets[e < left ? e : 0];
    Vec<T> sum[kSums];
#pragma GCC unroll 16
    for (int i = 0; i < kSums; ++i) sum[i] = Vec<T>{};
    for (int64_t y = 0; y < r.height; ++y) {
      for (int64_t at = 0; at < span; at += kWidth<T>, grads += kRows * kWidth<T>) {
        Vec<T> x[kEntries];
#pragma GCC unroll 4
        for (int e = 0; e < kEntries; ++e) {
          x[e] = load(lines[e] + at);
          hold(x[e]);
        }
#pragma GCC unroll 4
        for (int row = 0; row < kRows; ++row) {
          Vec<T> grad = load(grads + row * kWidth<T>);
          hold(grad);
#pragma GCC unroll 4
          for (int e = 0; e < kEntries; ++e) sum[e * kRows + row] += x[e] * grad;
        }
      }
#pragma GCC unroll 4
      for (int e = 0; e < kEntries; ++e) lines[e] += in_row;
    }
    add_totals(sum, left < kEntries ? left * kRows : kSums, sums);
  }

  // sums[i] += the sum of the lanes of sum[i], of the first `valid`.
  template <int Sums>
  inline void add_totals(const Vec<T> (&sum)[Sums], int64_t valid, T* sums) const {
    constexpr int kTotals = (Sums + kWidth<T> - 1) / kWidth<T> * kWidth<T>;
    T totals[kTotals];
#pragma GCC unroll 16
    for (int i = 0; i < kTotals; i += kWidth<T>) {
      Vec<T> lanes[kWidth<T>];
#pragma GCC unroll 16
      for (int lane = 0; lane < kWidth<T>; ++lane)
        lanes[lane] = i + lane < Sums ? sum[(i + lane) % Sums] : Vec<T>{};
      sum_lanes<kWidth<T> / 2, T>(lanes);
      store(totals + i, lanes[0]);
    }
    if (valid == Sums)
      for (int i = 0; i < Sums; ++i) sums[i] += totals[i];
    else
      for (int64_t i = 0; i < valid; ++i) sums[i] += totals[i];
  }
};

template <typename T>
void sample(const Sample<T>& s, const Strips& strips, T* packed, int64_t strip_begin, int64_t strip_end) {
  const StripSample<T> all{s, strips, packed};
  const int64_t width = s.width < 8 ? s.width : 8, height = kTileLines / width;
  for (int64_t y = 0; y < s.height; y += height)
    for (int64_t x = 0; x < s.width; x += width) {
      const int64_t high = s.height - y < height ? s.height - y : height;
      const int64_t wide = s.width - x < width ? s.width - x : width;
      for (int64_t strip = strip_begin; strip < strip_end; ++strip)
        all.rectangle(
            {s.in + y * s.in_row + x * kLine<T>, s.grad + y * s.grad_row + x * kLine<T>, high, wide}, strip);
    }
}

// ---- scatter --------------------------------------------------------------------------------------------

// Entries whose sums are held at a time: 8 accumulators.
template <typename T>
constexpr int kHeld = 8 / kParts<T>;

// One group of entries at one pixel: its lines of sums stay in registers while the strip's rows stream by.
template <typename T>
inline void add_rows(const int32_t* offsets, const T* weights, const T* grads, int64_t rows, T* sums) {
  T* lines[kHeld<T>];
  Vec<T> sum[kHeld<T>][kParts<T>];
#pragma GCC unroll 8
  for (int e = 0; e < kHeld<T>; ++e) {
    lines[e] = sums + offsets[e];
#pragma GCC unroll 2
    for (int i = 0; i < kParts<T>; ++i) sum[e][i] = load(lines[e] + i * kWidth<T>);
  }
  for (int64_t row = 0; row < rows; ++row, weights += kHeld<T>, grads += kLine<T>) {
    Vec<T> grad[kParts<T>];
#pragma GCC unroll 2
    for (int i = 0; i < kParts<T>; ++i) grad[i] = load(grads + i * kWidth<T>);
#pragma GCC unroll 8
    for (int e = 0; e < kHeld<T>; ++e) {
      const Vec<T> weight = broadcast(weights[e]);
#pragma GCC unroll 2
      for (int i = 0; i < kParts<T>; ++i) sum[e][i] += weight * grad[i];
    }
  }
#pragma GCC unroll 8
  for (int e = 0; e < kHeld<T>; ++e)
#pragma GCC unroll 2
    for (int i = 0; i < kParts<T>; ++i) store(lines[e] + i * kWidth<T>, sum[e][i]);
}

// The gradients of one pixel are copied side by side first: at their own places they share few cache sets.
template <typename T>
void scatter_strip(const Scatter<T>& s, const Strips& strips, int64_t strip, const T* packed) {
  constexpr int64_t kLongest = 32;
  alignas(64) T grads[kLongest * kLine<T>];
  const int64_t begin = strips.starts[strip], end = strips.starts[strip + 1], rows = strips.rows;
  if (begin == end) return;
  for (int64_t y = s.row_begin; y < s.row_end; ++y)
    for (int64_t x = 0; x < s.width; ++x) {
      const T* grad = s.grad + strip * rows * s.grad_channel + y * s.grad_row + x * kLine<T>;
      for (int64_t row = 0; row < rows; ++row, grad += s.grad_channel)
#pragma GCC unroll 4
        for (int i = 0; i < kLine<T>; i += kWidth<T>) store(grads + row * kLine<T> + i, load(grad + i));
      T* const sums = s.sums + y * s.sums_row + x * kLine<T>;
      for (int64_t e = begin; e < end; e += kHeld<T>) {
        // The next group's lines, or those of the next pixel's first: nobody waits for them then.
        const int32_t* const next = strips.offsets + (e + kHeld<T> < end ? e + kHeld<T> : begin);
        const T* const near = e + kHeld<T> < end ? sums : sums + kLine<T>;
        for (int i = 0; i < kHeld<T>; ++i) __builtin_prefetch(near + next[i], 1);
        for (int lane = 0; lane < kLine<T>; lane += kParts<T> * kWidth<T>)
          add_rows(strips.offsets + e, packed + e * rows, grads + lane, rows, sums + lane);
      }
    }
}

template <typename T>
void scatter(const Scatter<T>& s, const Strips& strips, const T* packed, int64_t count) {
  for (int64_t strip = 0; strip < count; ++strip) scatter_strip(s, strips, strip, packed);
}

template <typename T>
constexpr StripKernels<T> table() {
  return {&gather<T>, &sample<T>, &scatter<T>, kHeld<T>};
}

}  // namespace

#define FEDSPARSE_JOIN(a, b) a##b
#define FEDSPARSE_TABLE(name) FEDSPARSE_JOIN(kStrips_, name)

extern const StripTable FEDSPARSE_TABLE(FEDSPARSE_ISA) = {table<float>(), table<double>()};

}  // namespace fedsparse
