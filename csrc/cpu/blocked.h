// Between torch's layout [batch][channel][pixel] and blocks of kLanes images, [channel][line][lane].
#pragma once

#include <algorithm>
#include <cstdint>

#include "check.h"
#include "isa.h"

namespace fedsparse {

// How many pieces of that many elements a thread should at least move.
inline int64_t move_grain(int64_t piece) { return 1 + (1 << 14) / std::max<int64_t>(1, piece); }

template <typename T>
int64_t blocks_of(int64_t batch) {
  return (batch + kLanes<T> - 1) / kLanes<T>;
}

// A tensor [batch][channels][pixels], seen one block of images at a time.
template <typename T>
struct Images {
  T* data;
  int64_t batch, channels, pixels;

  Plane plane(int64_t block) const {
    return {channels * pixels, std::min(kLanes<T>, batch - block * kLanes<T>), pixels};
  }
  T* at(int64_t block, int64_t channel) const {
    return data + (block * kLanes<T> * channels + channel) * pixels;
  }
};

// One block into lines: channel c begins at line c * channel_lines, its pixel p at line place[p], or p where
// place is null.
template <typename T>
void read_block(const Images<const T>& images, int64_t block, const int32_t* place, int64_t channel_lines,
                T* lines) {
  const Plane plane = images.plane(block);
  const int64_t grain = move_grain(images.pixels * kLanes<T>);
  torch::stable::parallel_for(0, images.channels, grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      kernels<T>().to_lines(plane, images.at(block, c), place, lines + c * channel_lines * kLanes<T>);
  });
}

}  // namespace fedsparse
