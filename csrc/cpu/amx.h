// Strips in bfloat16 on matrix tiles: the kernels of Intel's AMX (amx-tile, amx-bf16) and their choice.
//
// Blocked bfloat16: a line holds the same 16 images as in fp32, in 32 bytes.  A tile has 16 rows of 64 bytes;
// one tile product adds [16][32] x [32][16] numbers to [16][16] fp32 sums, the second operand with its rows
// in pairs: [16][16][2].  The kernels are one source (amx/kernels.cpp), compiled over the instructions and
// over an emulation of them that runs everywhere (amx/emulated.h).
#pragma once

#include <cstdint>

#include "isa.h"

namespace fedsparse {

inline constexpr int64_t kSide = 16;              // rows of a tile, and columns of sums
inline constexpr int64_t kDepth = 32;             // products that one tile product adds to each sum
inline constexpr int64_t kTile = kSide * kDepth;  // bfloat16 numbers of a tile
inline constexpr int64_t kSums = kSide * kSide;   // fp32 numbers of a tile

// `rows` is V, 16 or 32.  Strip s reads the lines at offsets[starts[s]] to offsets[starts[s + 1]]; its
// entries lie in `units` of kDepth (forward) or kSide of them, the last one filled up with zeros, from
// units[s] on.
struct TileStrips {
  int64_t rows;
  const int32_t *starts, *offsets, *units;
};

// Gather in bfloat16.  A unit of weights is [V / 16][16 rows][kDepth entries].  bias may be null.
struct TileGather {
  const float* bias;
  const Bf16* in;
  int64_t in_row;
  Bf16* out;
  int64_t out_channel, out_row;
  int64_t height, width;
};

// Scatter in bfloat16.  A unit of weights is [kSide entries][V]; `grad` has the rows of the weight in pairs,
// row 2k of pixel (y, x) at (k * grad_pair + y * width + x) * kDepth, its images beside those of row 2k + 1
// (`interleave`).
struct TileScatter {
  float* sums;
  int64_t sums_row;
  const Bf16* grad;
  int64_t grad_pair;
  int64_t height, width;
};

// Sample in bfloat16.  `grad` is what `pair_pixels` made, `channels` rows of it.  A unit of the gradient is
// [V / 16][kSide entries][16 rows].
struct TileSample {
  const Bf16* in;
  int64_t in_row;
  const Bf16* grad;
  int64_t channels;
  int64_t height, width;
};

struct TileKernels {
  const char* name;
  void (*gather)(const TileGather&, const TileStrips&, const Bf16* weights, int64_t strip_begin,
                 int64_t strip_end);
  void (*scatter)(const TileScatter&, const TileStrips&, const Bf16* weights, int64_t strips);
  void (*sample)(const TileSample&, const TileStrips&, float* gradient, int64_t strip_begin,
                 int64_t strip_end);
  // out = a and b, image by image.
  void (*interleave)(const Bf16* a, const Bf16* b, int64_t lines, Bf16* out);
  // Gradients of channels 16 t to 16 t + 15, for t in [begin, end): two pixels of a row at a time, the last
  // of an odd row with zeros, as [pair of pixels][t][pair of images][channel][2]; `channels` is of all t.
  void (*pair_pixels)(const TileSample&, const Bf16* grad, int64_t grad_channel, int64_t begin, int64_t end,
                      Bf16* out);
  // out line p = sums line place[p], rounded to the nearest, ties to even.
  void (*round)(const float* sums, const int32_t* place, int64_t pixels, Bf16* out);
  // As Kernels::to_lines, without a place, and Kernels::from_lines.
  void (*to_lines)(const Plane&, const Bf16* images, Bf16* lines);
  void (*from_lines)(const Plane&, const Bf16* lines, Bf16* images);
  // c [16][16] += a [16][depth] x b [depth / 2][16][2]: one tile product, for tests.
  void (*multiply)(const Bf16* a, const Bf16* b, int64_t depth, float* c);
};

extern const TileKernels kTiles_emulated;
#if defined(FEDSPARSE_X86)
extern const TileKernels kTiles_amx;
#endif

// Those of AMX where the CPU and the system have it, or those that FEDSPARSE_TILES or `set_tiles` names; null
// where there are none.
const TileKernels* chosen_tiles();

// For what needs no tiles: the chosen ones, else the emulated.
const TileKernels& line_tiles();

// The chosen ones; RuntimeError where there are none.
const TileKernels& required_tiles(const char* op);

}  // namespace fedsparse
