// Compiled twice, over the instructions of AMX and over their emulation, under the rules of csrc/cpu/isa:
// internal linkage but for the table at the foot, no standard header with inline code.
#include "../amx.h"

#if defined(FEDSPARSE_AMX)
#define FEDSPARSE_TILES amx
#include "amx.h"
#else
#define FEDSPARSE_TILES emulated
#include "emulated.h"
#endif
#include "vectors.h"

namespace fedsparse {
namespace FEDSPARSE_TILES {  // named, so that what is linked can be told apart
namespace {

constexpr int kSide_ = static_cast<int>(kSide);
constexpr int64_t kRowBytes = 64;  // of a tile

// Tiles of scratch that are filled before any is used: 16 KiB, so that a tile is read long after its vectors
// were written, and out of the first-level cache.
constexpr int kNear = 16;

template <int I>
struct Int {
  constexpr operator int() const { return I; }
};

// body(0) to body(N - 1), each with a constant of its own.
template <int N, int I = 0, typename Body>
inline void each(const Body& body) {
  if constexpr (I < N) {
    body(Int<I>{});
    each<N, I + 1>(body);
  }
}

inline int64_t units_of(const TileStrips& strips, int64_t s) { return strips.units[s + 1] - strips.units[s]; }

// ---- gather ---------------------------------------------------------------------------------------------

// Pairs of entries become the rows of second operands, [unit][pixel]: the lines of the two, image by image.
// Rows without an entry are zero, so that what the weights there (zeros) are multiplied with is finite.
template <int Pixels>
inline void gather_rows(const int32_t* offsets, int64_t count, const Bf16* in, int64_t units, Bf16* near) {
  const auto row = [&](int64_t k) { return near + k / kSide * Pixels * kTile + k % kSide * kDepth; };
  int64_t k = 0;
  for (; 2 * k + 1 < count; ++k) {
    const Bf16 *const a = in + offsets[2 * k], *const b = in + offsets[2 * k + 1];
    Bf16* const to = row(k);
#pragma GCC unroll 4
    for (int p = 0; p < Pixels; ++p)
      store_row(to + p * kTile, interleaved(load_half(a + p * kSide), load_half(b + p * kSide)));
  }
  for (; k < units * kSide; ++k)
    for (int p = 0; p < Pixels; ++p) {
      const Half last = 2 * k < count ? load_half(in + offsets[2 * k] + p * kSide) : Half{};
      store_row(row(k) + p * kTile, interleaved(last, Half{}));
    }
}

// T tiles of 16 rows at Pixels neighbours of one row of pixels.
template <int T, int Pixels>
void gather_pixels(Tiles& tiles, const TileGather& g, const TileStrips& strips, const Bf16* weights,
                   int64_t s, int64_t y, int64_t x) {
  constexpr int kRun = kNear / Pixels;
  alignas(64) Bf16 near[kNear * kTile];
  alignas(64) float sums[T * Pixels][kSums];
  each<T * Pixels>([&](auto i) { tiles.zero<i>(); });
  const Bf16* const in = g.in + y * g.in_row + x * kSide;
  const int64_t end = strips.starts[s + 1];
  for (int64_t unit = 0; unit < units_of(strips, s); unit += kRun) {
    const int64_t left = units_of(strips, s) - unit, run = left < kRun ? left : kRun;
    const int64_t first = strips.starts[s] + unit * kDepth, last = first + run * kDepth;
    gather_rows<Pixels>(strips.offsets + first, (last < end ? last : end) - first, in, run, near);
    for (int64_t u = 0; u < run; ++u) {
      const Bf16* const w = weights + (strips.units[s] + unit + u) * T * kTile;
      each<T>([&](auto t) { tiles.load<4 + t>(w + t * kTile, kRowBytes); });
      each<Pixels>([&](auto p) {
        tiles.load<6 + p % 2>(near + (u * Pixels + p) * kTile, kRowBytes);
        each<T>([&](auto t) { tiles.multiply<t * Pixels + p, 4 + t, 6 + p % 2>(); });
      });
    }
  }
  each<T * Pixels>([&](auto i) { tiles.store<i>(sums[i], kRowBytes); });
  for (int t = 0; t < T; ++t)
    for (int r = 0; r < kSide_; ++r) {
      const int64_t row = (s * T + t) * kSide + r;
      const Single bias = Single{} + (g.bias ? g.bias[row] : 0.0f);
      Bf16* const out = g.out + row * g.out_channel + y * g.out_row + x * kSide;
      for (int p = 0; p < Pixels; ++p)
        store_half(out + p * kSide, rounded(load_single(sums[t * Pixels + p] + r * kSide) + bias));
    }
}

template <int T>
void gather_strips(const TileGather& g, const TileStrips& strips, const Bf16* weights, int64_t begin,
                   int64_t end) {
  Tiles tiles(kDepth);
  for (int64_t s = begin; s < end; ++s)
    for (int64_t y = 0; y < g.height; ++y) {
      int64_t x = 0;
      if constexpr (T == 1)
        for (; x + 4 <= g.width; x += 4) gather_pixels<T, 4>(tiles, g, strips, weights, s, y, x);
      for (; x + 2 <= g.width; x += 2) gather_pixels<T, 2>(tiles, g, strips, weights, s, y, x);
      for (; x < g.width; ++x) gather_pixels<T, 1>(tiles, g, strips, weights, s, y, x);
    }
}

void gather(const TileGather& g, const TileStrips& strips, const Bf16* weights, int64_t begin, int64_t end) {
  strips.rows == kSide ? gather_strips<1>(g, strips, weights, begin, end)
                       : gather_strips<2>(g, strips, weights, begin, end);
}

// ---- scatter --------------------------------------------------------------------------------------------

// Products of one strip at Pixels neighbours, then their addition to the lines of its entries.
template <int Pixels>
void scatter_pixels(Tiles& tiles, const TileScatter& s, const TileStrips& strips, const Bf16* weights,
                    int64_t strip, int64_t y, int64_t x) {
  constexpr int kRun = kNear / Pixels;
  alignas(64) float near[kNear * kSums];
  const Bf16* const grad = s.grad + (strip * strips.rows / 2 * s.grad_pair + y * s.width + x) * kDepth;
  each<Pixels>([&](auto p) { tiles.load<6 + p>(grad + p * kDepth, s.grad_pair * kRowBytes); });
  float* const sums = s.sums + y * s.sums_row + x * kSide;
  const int64_t end = strips.starts[strip + 1];
  for (int64_t unit = 0; unit < units_of(strips, strip); unit += kRun) {
    const int64_t left = units_of(strips, strip) - unit, run = left < kRun ? left : kRun;
    for (int64_t u = 0; u < run; ++u) {
      const Bf16* const w = weights + (strips.units[strip] + unit + u) * kSide * strips.rows;
      tiles.load<4>(w, strips.rows * static_cast<int64_t>(sizeof(Bf16)));
      each<Pixels>([&](auto p) {
        tiles.zero<p>();
        tiles.multiply<p, 4, 6 + p>();
        tiles.store<p>(near + (u * Pixels + p) * kSums, kRowBytes);
      });
    }
    const int64_t first = strips.starts[strip] + unit * kSide;
    const int64_t count = (first + run * kSide < end ? first + run * kSide : end) - first;
    for (int64_t e = 0; e < count; ++e)
      for (int p = 0; p < Pixels; ++p) {
        float* const line = sums + strips.offsets[first + e] + p * kSide;
        const float* const product = near + (e / kSide * Pixels + p) * kSums + e % kSide * kSide;
        store_single(line, load_single(line) + load_single(product));
      }
  }
}

void scatter(const TileScatter& s, const TileStrips& strips, const Bf16* weights, int64_t count) {
  Tiles tiles(strips.rows);
  for (int64_t strip = 0; strip < count; ++strip)
    for (int64_t y = 0; y < s.height; ++y) {
      int64_t x = 0;
      for (; x + 2 <= s.width; x += 2) scatter_pixels<2>(tiles, s, strips, weights, strip, y, x);
      for (; x < s.width; ++x) scatter_pixels<1>(tiles, s, strips, weights, strip, y, x);
    }
}

// ---- sample ---------------------------------------------------------------------------------------------

// T tiles of 16 rows by Units units of entries, over all pixels: first operands are the entries' lines at two
// neighbours, [pair of pixels][unit], second operands the gradients there.
template <int T, int Units>
void sample_units(Tiles& tiles, const TileSample& s, const TileStrips& strips, int64_t strip, int64_t unit,
                  float* gradient) {
  constexpr int kRun = kNear / Units;
  alignas(64) Bf16 near[kNear * kTile];
  const int64_t first = strips.starts[strip] + unit * kSide, left = strips.starts[strip + 1] - first;
  const int64_t count = left < Units * kSide ? left : Units * kSide;
  const int64_t across = (s.width + 1) / 2, pairs = s.height * across;
  float* const sums = gradient + (strips.units[strip] + unit) * T * kSums;
  each<Units * T>([&](auto i) { tiles.load<i>(sums + i * kSums, kRowBytes); });
  for (int64_t pair = 0; pair < pairs; pair += kRun) {
    const int64_t run = pairs - pair < kRun ? pairs - pair : kRun;
    for (int64_t i = 0; i < run; ++i) {
      const int64_t y = (pair + i) / across, x = (pair + i) % across * 2;
      const Bf16* const in = s.in + y * s.in_row + x * kSide;
      Bf16* const rows = near + i * Units * kTile;
      for (int64_t e = 0; e < count; ++e)
        store_row(rows + e * kDepth, load_pixels(in + strips.offsets[first + e], s.width - x));
      for (int64_t e = count; e < Units * kSide; ++e) store_row(rows + e * kDepth, Row{});
    }
    for (int64_t i = 0; i < run; ++i) {
      const Bf16* const grad = s.grad + ((pair + i) * (s.channels / kSide) + strip * T) * kTile;
      each<T>([&](auto t) { tiles.load<6 + t>(grad + t * kTile, kRowBytes); });
      each<Units>([&](auto u) {
        tiles.load<4 + u % 2>(near + (i * Units + u) * kTile, kRowBytes);
        each<T>([&](auto t) { tiles.multiply<u * T + t, 4 + u % 2, 6 + t>(); });
      });
    }
  }
  each<Units * T>([&](auto i) { tiles.store<i>(sums + i * kSums, kRowBytes); });
}

template <int T>
void sample_strips(const TileSample& s, const TileStrips& strips, float* gradient, int64_t begin,
                   int64_t end) {
  Tiles tiles(kDepth);
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t units = units_of(strips, strip);
    int64_t unit = 0;
    if constexpr (T == 1)
      for (; unit + 4 <= units; unit += 4) sample_units<T, 4>(tiles, s, strips, strip, unit, gradient);
    for (; unit + 2 <= units; unit += 2) sample_units<T, 2>(tiles, s, strips, strip, unit, gradient);
    for (; unit < units; ++unit) sample_units<T, 1>(tiles, s, strips, strip, unit, gradient);
  }
}

void sample(const TileSample& s, const TileStrips& strips, float* gradient, int64_t begin, int64_t end) {
  strips.rows == kSide ? sample_strips<1>(s, strips, gradient, begin, end)
                       : sample_strips<2>(s, strips, gradient, begin, end);
}

// ---- lines ----------------------------------------------------------------------------------------------

void interleave(const Bf16* a, const Bf16* b, int64_t lines, Bf16* out) {
  for (int64_t i = 0; i < lines; ++i)
    store_row(out + i * kDepth, interleaved(load_half(a + i * kSide), load_half(b + i * kSide)));
}

void pair_pixels(const TileSample& s, const Bf16* grad, int64_t channel, int64_t begin, int64_t end,
                 Bf16* out) {
  const int64_t across = (s.width + 1) / 2;
  for (int64_t t = begin; t < end; ++t)
    for (int64_t pair = 0; pair < s.height * across; ++pair) {
      const int64_t y = pair / across, x = pair % across * 2;
      const Bf16* const from = grad + t * kSide * channel + (y * s.width + x) * kSide;
      Pairs rows[kSide_];
      for (int r = 0; r < kSide_; ++r) rows[r] = as_pairs(load_pixels(from + r * channel, s.width - x));
      transpose(rows);
      Bf16* const to = out + (pair * (s.channels / kSide) + t) * kTile;
      for (int k = 0; k < kSide_; ++k) store_row(to + k * kDepth, as_row(rows[k]));
    }
}

void round(const float* sums, const int32_t* place, int64_t pixels, Bf16* out) {
  for (int64_t p = 0; p < pixels; ++p)
    store_half(out + p * kSide, rounded(load_single(sums + place[p] * kSide)));
}

// 32 pixels at a time: of 16 images as 16 pairs of neighbours, transposed to 16 pairs of lines.
void to_lines(const Plane& plane, const Bf16* images, Bf16* lines) {
  int64_t p = 0;
  for (; p + kDepth <= plane.pixels; p += kDepth) {
    Pairs rows[kSide_];
    for (int64_t i = 0; i < kSide; ++i)
      rows[i] = i < plane.valid ? as_pairs(load_row(images + i * plane.image_stride + p)) : Pairs{};
    transpose(rows);
    for (int k = 0; k < kSide_; ++k) store_row(lines + (p + 2 * k) * kSide, separated(as_row(rows[k])));
  }
  for (; p < plane.pixels; ++p)
    for (int64_t i = 0; i < kSide; ++i)
      lines[p * kSide + i] = i < plane.valid ? images[i * plane.image_stride + p] : Bf16{0};
}

void from_lines(const Plane& plane, const Bf16* lines, Bf16* images) {
  int64_t p = 0;
  for (; p + kDepth <= plane.pixels; p += kDepth) {
    Pairs rows[kSide_];
    for (int k = 0; k < kSide_; ++k) {
      const Bf16* const at = lines + (p + 2 * k) * kSide;
      rows[k] = as_pairs(interleaved(load_half(at), load_half(at + kSide)));
    }
    transpose(rows);
    for (int64_t i = 0; i < plane.valid; ++i) store_row(images + i * plane.image_stride + p, as_row(rows[i]));
  }
  for (; p < plane.pixels; ++p)
    for (int64_t i = 0; i < plane.valid; ++i) images[i * plane.image_stride + p] = lines[p * kSide + i];
}

void multiply(const Bf16* a, const Bf16* b, int64_t depth, float* c) {
  Tiles tiles(depth);
  tiles.load<0>(c, kRowBytes);
  tiles.load<4>(a, depth * static_cast<int64_t>(sizeof(Bf16)));
  tiles.load<6>(b, kRowBytes);
  tiles.multiply<0, 4, 6>();
  tiles.store<0>(c, kRowBytes);
}

constexpr TileKernels kTable = {Tiles::kName, &gather, &scatter,  &sample,     &interleave,
                                &pair_pixels, &round,  &to_lines, &from_lines, &multiply};

}  // namespace
}  // namespace FEDSPARSE_TILES

#if defined(FEDSPARSE_AMX)
extern const TileKernels kTiles_amx = amx::kTable;
#else
extern const TileKernels kTiles_emulated = emulated::kTable;
#endif

}  // namespace fedsparse
