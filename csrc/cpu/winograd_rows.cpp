#include "winograd_rows.h"

#include <algorithm>
#include <vector>

#include "blocked_tensor.h"
#include "winograd.h"

namespace fedsparse {
namespace {

constexpr int64_t kLine = kLanes<float>;

// Bytes of the transformed lines that are in memory at a time, and lines at most.
constexpr int64_t kChunkBytes = 8 * 1024 * 1024, kMostLines = 32;

const WinogradKernels& chosen() {
#if defined(FEDSPARSE_X86)
  if (&chosen_isa() == &kIsa_avx512) return kWinograd_avx512;
  if (&chosen_isa() == &kIsa_avx2) return kWinograd_avx2;
#endif
  return kWinograd_portable;
}

const WinogradScheme& scheme_of(const Conv& conv) {
  return conv.stride.y == 1 ? chosen().unit : chosen().strided;
}

int64_t rounded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

struct Tiles {
  int64_t y, x;
  int64_t count() const { return y * x; }
};

Tiles tiles_of(const Conv& conv) {
  return {(conv.out.y + kWinogradTile - 1) / kWinogradTile, (conv.out.x + kWinogradTile - 1) / kWinogradTile};
}

// Where the tiles read: square windows of a blocked tensor, of several channels; zeros outside of the map, of
// the channels and in lanes without an image.
class ChannelWindows {
 public:
  ChannelWindows(const Planes<const float>& planes, Pair size, int64_t side, int64_t channels)
      : planes_(planes),
        size_(size),
        side_(side),
        channels_(channels),
        offsets_(side * side),
        lines_(channels * side * side) {}

  // Of channels [first, first + channels) from pixel (y, x) on; those from `end` on are zeros.
  const float* const* at(int64_t block, int64_t first, int64_t end, int64_t y, int64_t x) {
    for (int64_t i = 0; i < side_ * side_; ++i) {
      const int64_t row = y + i / side_, col = x + i % side_;
      const bool inside = row >= 0 && row < size_.y && col >= 0 && col < size_.x;
      offsets_[i] = inside ? (row * size_.x + col) * kLine : -1;
    }
    const auto window = static_cast<int64_t>(offsets_.size());
    for (int64_t c = 0; c < channels_; ++c) {
      const float* const plane = first + c < end ? planes_.at(block, first + c) : nullptr;
      for (int64_t i = 0; i < window; ++i)
        lines_[c * window + i] = plane && offsets_[i] >= 0 ? plane + offsets_[i] : kZeros;
    }
    if (planes_.valid(block) < kLine) copy_valid(planes_.valid(block));
    return lines_.data();
  }

 private:
  void copy_valid(int64_t valid) {
    copies_.resize(lines_.size() * kLine);
    for (size_t n = 0; n < lines_.size(); ++n) {
      float* const copy = copies_.data() + n * kLine;
      line_kernels<float>().copy_valid(lines_[n], 1, valid, copy);
      lines_[n] = copy;
    }
  }

  alignas(64) static constexpr float kZeros[kLine] = {};
  const Planes<const float>& planes_;
  Pair size_;
  int64_t side_, channels_;
  std::vector<int64_t> offsets_;
  std::vector<const float*> lines_;
  std::vector<float> copies_;
};

// Some lines, a tile of a block of images each, of all channels: [point][channel][line].  A point has an odd
// number of lines, so that those of one line fall into different sets of the cache.
struct Points {
  Tensor lines;
  int64_t channels, chunk;

  Points(const Tensor& like, const WinogradScheme& scheme, int64_t channels_, int64_t chunk_)
      : lines(torch::stable::new_empty(like, {scheme.points * (channels_ * chunk_ + 1) * kLine})),
        channels(channels_),
        chunk(chunk_) {}

  int64_t position() const { return (channels * chunk | 1) * kLine; }
  // Of `count` lines, which may be fewer than the chunk.
  float* at(int64_t point, int64_t channel, int64_t count) const {
    return out_ptr<float>(lines) + point * position() + channel * count * kLine;
  }
};

// The first channels of a chunk of lines, `unit` at a time.
struct Source {
  const Planes<const float>& planes;
  Pair size, before;  // of the map, and from the first window's corner to the first pixel
  int64_t side, step, unit, first, count;
};

template <typename Transform>
void to_points(const Source& source, const Tiles& tiles, int64_t begin, int64_t end, const Points& points,
               const Transform& transform) {
  const int64_t lines = end - begin;
  torch::stable::parallel_for(0, points.channels / source.unit * lines, 1, [&](int64_t from, int64_t to) {
    ChannelWindows windows(source.planes, source.size, source.side, source.unit);
    for (int64_t item = from; item < to; ++item) {
      const int64_t channel = item / lines * source.unit, line = item % lines;
      const int64_t block = (begin + line) / tiles.count(), tile = (begin + line) % tiles.count();
      transform(windows.at(block, source.first + channel, source.first + source.count,
                           tile / tiles.x * source.step - source.before.y,
                           tile % tiles.x * source.step - source.before.x),
                points.at(0, channel, lines) + line * source.unit * kLine, points.position());
    }
  });
}

}  // namespace

bool winograd_pays(const Conv& conv) {
  const bool fits = conv.kernel.y == 3 && conv.kernel.x == 3 && conv.stride.y == conv.stride.x &&
                    conv.stride.y <= 2 && conv.dilation.y == 1 && conv.dilation.x == 1;
  return fits && 4 * scheme_of(conv).points * tiles_of(conv).count() <= 3 * 9 * conv.out.y * conv.out.x;
}

void winograd_rows(const Conv& conv, const Tensor& x, const Tensor& gy, int64_t first, int64_t rows,
                   float* gradient) {
  const WinogradScheme& scheme = scheme_of(conv);
  const auto multiply = chosen().multiply;
  const Planes<const float> images = planes_of(x, conv.batch, in_ptr<float>(x));
  const Planes<const float> grads = planes_of(gy, conv.batch, in_ptr<float>(gy));
  const Tiles tiles = tiles_of(conv);
  const Source in{images,           conv.in, conv.padding, scheme.side, scheme.step,
                  kWinogradColumns, 0,       conv.channels};
  const Source out{grads, conv.out, {0, 0}, kWinogradTile, kWinogradTile, 1, first, rows};
  const int64_t columns = rounded(conv.channels, kWinogradColumns), padded = rounded(rows, kWinogradRows);
  const int64_t all = images.blocks * tiles.count();
  const int64_t line_bytes = scheme.points * (columns + padded) * kLine * static_cast<int64_t>(sizeof(float));
  const int64_t chunk = std::clamp<int64_t>(kChunkBytes / line_bytes, 1, std::min(kMostLines, all));
  const Points inputs(x, scheme, columns, chunk), outputs(x, scheme, padded, chunk);
  const int64_t position = padded * columns + kLine;
  const Tensor sums = torch::stable::new_empty(x, {scheme.points * position});
  for (int64_t begin = 0; begin < all; begin += chunk) {
    const int64_t end = std::min(all, begin + chunk), count = (end - begin) * kLine;
    to_points(in, tiles, begin, end, inputs, scheme.input);
    to_points(out, tiles, begin, end, outputs, scheme.gradient);
    torch::stable::parallel_for(0, scheme.points, 1, [&](int64_t from, int64_t to) {
      for (int64_t point = from; point < to; ++point)
        multiply(outputs.at(point, 0, end - begin), padded, inputs.at(point, 0, end - begin), columns, count,
                 begin == 0, out_ptr<float>(sums) + point * position);
    });
  }
  torch::stable::parallel_for(0, rows, 1, [&](int64_t from, int64_t to) {
    for (int64_t row = from; row < to; ++row)
      for (int64_t c = 0; c < conv.channels; c += 4) {
        float taps[9 * 4];
        scheme.taps(in_ptr<float>(sums) + row * columns + c, position, taps);
        std::copy_n(taps, 9 * std::min<int64_t>(4, conv.channels - c),
                    gradient + (row * conv.channels + c) * 9);
      }
  });
}

}  // namespace fedsparse
