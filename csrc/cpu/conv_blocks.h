// How a convolution's input channels are cut for the caches.
#pragma once

#include "conv_geometry.h"
#include "isa.h"
#include "lists.h"

namespace fedsparse {

inline Pair register_tile() { return {chosen_isa().tile.height, chosen_isa().tile.width}; }

// For the passes that read the input: forward and the gradient at the active weights.
template <typename T>
ChannelBlocks input_blocks(const Conv& conv, const PaddedPlane& plane, const Index& index) {
  const Pair tile = register_tile();
  const Pair seen{std::min(tile.y, conv.out.y), std::min(tile.x, conv.out.x)};
  return channel_blocks(index, conv.channels, plane.lines * kLanes<T>,
                        tile_lines(seen, conv.kernel, conv.stride, conv.dilation));
}

}  // namespace fedsparse
