// Compiled once for each instruction set, like kernels.cpp and under the same rules: internal linkage but for
// the table at the foot, no standard header with inline code.
#include "../winograd.h"

#include "../shuffle.h"

namespace fedsparse {
namespace {

using Vec = Vector<float>::type;
typedef float Four __attribute__((vector_size(16)));
typedef float LooseFour __attribute__((vector_size(16), aligned(4), may_alias));

constexpr int kWidth = Vector<float>::kWidth, kLine = static_cast<int>(kLanes<float>);
constexpr int kTile = static_cast<int>(kWinogradTile), kRows = static_cast<int>(kWinogradRows);
constexpr int kColumns = static_cast<int>(kWinogradColumns);

// ---- one side: B^T, G and A^T

struct Unit {
  static constexpr int kSide = 6, kPoints = 6, kStep = 4;

  template <typename V>
  static void input(const V (&d)[kSide], V (&t)[kPoints]) {
    const V even = d[4] - 4.0F * d[2], odd = d[3] - 4.0F * d[1];
    const V far = d[4] - d[2], wide = 2.0F * (d[3] - d[1]);
    t[0] = 4.0F * d[0] - 5.0F * d[2] + d[4];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = far + wide;
    t[4] = far - wide;
    t[5] = 4.0F * d[1] - 5.0F * d[3] + d[5];
  }

  template <typename V>
  static void gradient(const V (&g)[kTile], V (&t)[kPoints]) {
    const V even = (-1.0F / 6) * (g[0] + g[2]), odd = (-1.0F / 6) * (g[1] + g[3]);
    const V far = (1.0F / 24) * g[0] + (1.0F / 6) * g[2], wide = (1.0F / 12) * g[1] + (1.0F / 3) * g[3];
    t[0] = 0.25F * g[0];
    t[1] = even + odd;
    t[2] = even - odd;
    t[3] = far + wide;
    t[4] = far - wide;
    t[5] = g[3];
  }

  template <typename V>
  static void taps(const V (&m)[kPoints], V (&y)[3]) {
    const V near = m[1] + m[2], far = m[3] + m[4];
    y[0] = m[0] + near + far;
    y[1] = (m[1] - m[2]) + 2.0F * (m[3] - m[4]);
    y[2] = near + 4.0F * far + m[5];
  }
};

struct Strided {
  static constexpr int kSide = 9, kPoints = 9, kStep = 8;

  template <typename V>
  static void input(const V (&d)[kSide], V (&t)[kPoints]) {
    const V all = d[6] - d[2], twice = 2.0F * d[2];
    t[0] = 2.0F * (d[0] - d[4]) + all;
    t[1] = d[6] - d[4] - twice;
    t[2] = d[6] - 3.0F * d[4] + twice;
    t[3] = all;
    t[4] = twice - d[4] - 2.0F * d[6] + d[8];
    for (int i = 0; i < kTile; ++i) t[5 + i] = d[2 * i + 1];
  }

  template <typename V>
  static void gradient(const V (&g)[kTile], V (&t)[kPoints]) {
    const V even = g[0] + g[2], odd = g[1] + g[3];
    t[0] = 0.5F * g[0];
    t[1] = -0.5F * (even + odd);
    t[2] = (1.0F / 6) * (odd - even);
    t[3] = (1.0F / 6) * g[0] + (1.0F / 3) * g[1] + (2.0F / 3) * g[2] + (4.0F / 3) * g[3];
    t[4] = g[3];
    for (int i = 0; i < kTile; ++i) t[5 + i] = g[i];
  }

  template <typename V>
  static void taps(const V (&m)[kPoints], V (&y)[3]) {
    y[0] = (m[0] + m[1]) + (m[2] + m[3]);
    y[1] = (m[5] + m[6]) + (m[7] + m[8]);
    y[2] = (m[1] - m[2]) + 2.0F * m[3] + m[4];
  }
};

// ---- both sides

// Applies `along` to the columns and then to the rows of a square; load(y, x) and store(y, x, value).
template <typename V, int From, int To, typename Along, typename Load, typename Store>
inline void both_sides(const Along& along, const Load& load_at, const Store& store_at) {
  V rows[To][From];
  for (int x = 0; x < From; ++x) {
    V column[From], t[To];
#pragma GCC unroll 9
    for (int y = 0; y < From; ++y) column[y] = load_at(y, x);
    along(column, t);
#pragma GCC unroll 9
    for (int y = 0; y < To; ++y) rows[y][x] = t[y];
  }
  for (int y = 0; y < To; ++y) {
    V t[To];
    along(rows[y], t);
#pragma GCC unroll 9
    for (int x = 0; x < To; ++x) store_at(y, x, t[x]);
  }
}

// Columns are transformed one by one, then transposed so that those of one image are side by side.
template <typename Scheme>
void input(const float* const* lines, float* out, int64_t position) {
  constexpr int kSide = Scheme::kSide, kPoints = Scheme::kPoints;
  alignas(64) float square[kWidth][kPoints * kPoints * kWidth];
  for (int first = 0; first < kColumns; first += kWidth)
    for (int part = 0; part < kLine; part += kWidth) {
      for (int c = 0; c < kWidth; ++c) {
        const float* const* window = lines + (first + c) * kSide * kSide;
        both_sides<Vec, kSide, kPoints>(
            [](const Vec(&d)[kSide], Vec(&t)[kPoints]) { Scheme::input(d, t); },
            [&](int y, int x) { return load(window[kSide * y + x] + part); },
            [&](int y, int x, Vec value) { store(square[c] + (kPoints * y + x) * kWidth, value); });
      }
      for (int p = 0; p < kPoints * kPoints; ++p) {
        Vec r[kWidth];
#pragma GCC unroll 16
        for (int c = 0; c < kWidth; ++c) r[c] = load(square[c] + p * kWidth);
        transpose<kWidth / 2, float>(r);
#pragma GCC unroll 16
        for (int i = 0; i < kWidth; ++i) store(out + p * position + (part + i) * kColumns + first, r[i]);
      }
    }
}

template <typename Scheme>
void gradient(const float* const* lines, float* out, int64_t position) {
  constexpr int kPoints = Scheme::kPoints;
  for (int part = 0; part < kLine; part += kWidth) {
    Vec rows[kPoints][kTile];  // along y first
#pragma GCC unroll 4
    for (int x = 0; x < kTile; ++x) {
      Vec column[kTile], t[kPoints];
#pragma GCC unroll 4
      for (int y = 0; y < kTile; ++y) column[y] = load(lines[kTile * y + x] + part);
      Scheme::gradient(column, t);
#pragma GCC unroll 9
      for (int y = 0; y < kPoints; ++y) rows[y][x] = t[y];
    }
    for (int y = 0; y < kPoints; ++y) {
      Vec t[kPoints];
      Scheme::gradient(rows[y], t);
#pragma GCC unroll 9
      for (int x = 0; x < kPoints; ++x) store(out + (kPoints * y + x) * position + part, t[x]);
    }
  }
}

template <typename Scheme>
void taps(const float* sums, int64_t position, float* out) {
  constexpr int kPoints = Scheme::kPoints;
  Four half[3][kPoints];
  for (int x = 0; x < kPoints; ++x) {
    Four column[kPoints], y[3];
    for (int p = 0; p < kPoints; ++p)
      column[p] = *reinterpret_cast<const LooseFour*>(sums + (kPoints * p + x) * position);
    Scheme::taps(column, y);
    for (int i = 0; i < 3; ++i) half[i][x] = y[i];
  }
  for (int i = 0; i < 3; ++i) {
    Four y[3];
    Scheme::taps(half[i], y);
    for (int j = 0; j < 3; ++j)
      for (int column = 0; column < 4; ++column) out[9 * column + 3 * i + j] = y[j][column];
  }
}

// ---- products

// kRows rows by kAcross vectors of columns stay in registers while images and tiles stream by.  Sums of each
// call are made apart and then added, which rounds less than one long sum.
constexpr int kAcross = kWidth == 4 ? 2 : kColumns / kWidth;

inline void few(const float* gradients, const float* inputs, int64_t count, bool fresh, float* sums,
                int64_t columns) {
  Vec sum[kRows][kAcross];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kAcross; ++i) sum[r][i] = Vec{};
  for (int64_t k = 0; k < count; ++k, inputs += kColumns) {
    Vec x[kAcross];
#pragma GCC unroll 4
    for (int i = 0; i < kAcross; ++i) x[i] = load(inputs + i * kWidth);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
      const Vec g = broadcast(gradients[r * count + k]);
#pragma GCC unroll 4
      for (int i = 0; i < kAcross; ++i) sum[r][i] += g * x[i];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < kAcross; ++i) {
      float* const place = sums + r * columns + i * kWidth;
      store(place, fresh ? sum[r][i] : load(place) + sum[r][i]);
    }
}

void multiply(const float* gradients, int64_t rows, const float* inputs, int64_t columns, int64_t count,
              bool fresh, float* sums) {
  for (int64_t c = 0; c < columns; c += kColumns)
    for (int64_t r = 0; r < rows; r += kRows)
      for (int part = 0; part < kColumns; part += kAcross * kWidth)
        few(gradients + r * count, inputs + c * count + part, count, fresh, sums + r * columns + c + part,
            columns);
}

template <typename Scheme>
constexpr WinogradScheme scheme() {
  return {Scheme::kPoints * Scheme::kPoints,
          Scheme::kSide,
          Scheme::kStep,
          &input<Scheme>,
          &gradient<Scheme>,
          &taps<Scheme>};
}

}  // namespace

#define FEDSPARSE_JOIN(a, b) a##b
#define FEDSPARSE_TABLE(name) FEDSPARSE_JOIN(kWinograd_, name)

extern const WinogradKernels FEDSPARSE_TABLE(FEDSPARSE_ISA) = {scheme<Unit>(), scheme<Strided>(), &multiply};

}  // namespace fedsparse
