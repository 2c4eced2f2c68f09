// topk: the indices of the largest scores of each segment; exact counts, ties to the lower index.
//
// The smallest key that is taken is found a byte at a time from the top, by counting the keys that share the
// bytes found so far: no copy of the scores, and the same answer whatever their order.
#include <torch/csrc/stable/library.h>

#include <array>
#include <bit>
#include <limits>
#include <type_traits>
#include <vector>

#include "check.h"

namespace fedsparse {
namespace {

// Unsigned keys in the order of the scores; -0 and +0 have the same key.
template <typename T>
auto key_of(T score) {
  using Bits = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  constexpr Bits kSign = Bits{1} << (8 * sizeof(T) - 1);
  const Bits bits = std::bit_cast<Bits>(score + T{0});
  return bits & kSign ? ~bits : bits | kSign;
}

// What a segment takes: all keys above `key`, and the first `ties` of those equal to it.
template <typename Key>
struct Threshold {
  Key key;
  int64_t ties;
};

template <typename T>
auto threshold_of(const T* scores, int64_t size, int64_t count) {
  using Key = decltype(key_of(T{}));
  Threshold<Key> found{0, count};
  for (int shift = 8 * (sizeof(T) - 1); shift >= 0; shift -= 8) {
    std::array<int64_t, 256> with_byte{};
    const Key fixed = shift == 8 * (sizeof(T) - 1) ? Key{0} : ~Key{0} << (shift + 8);
    for (int64_t i = 0; i < size; ++i) {
      const Key key = key_of(scores[i]);
      if ((key & fixed) == found.key) ++with_byte[(key >> shift) & 0xff];
    }
    int byte = 255;
    for (; with_byte[byte] < found.ties; --byte) found.ties -= with_byte[byte];
    found.key |= static_cast<Key>(byte) << shift;
  }
  return found;
}

template <typename T>
int64_t* take(const T* scores, int64_t start, int64_t size, int64_t count, int64_t* out) {
  if (count == 0) return out;
  auto [threshold, ties] = threshold_of(scores + start, size, count);
  for (int64_t i = start; i < start + size; ++i) {
    const auto key = key_of(scores[i]);
    if (key > threshold || (key == threshold && ties-- > 0)) *out++ = i;
  }
  return out;
}

Tensor topk(Tensor scores_in, std::vector<int64_t> sizes, std::vector<int64_t> counts) {
  const char* op = "topk";
  const Tensor scores = checked_floats(op, "scores", scores_in, 1);
  require(sizes.size() == counts.size(), op, ": sizes and counts must be equally long.");
  int64_t size = 0, count = 0;
  for (size_t i = 0; i < sizes.size(); ++i) {
    require(counts[i] >= 0 && counts[i] <= sizes[i], op, ": a count must be between 0 and ", sizes[i],
            ", not ", counts[i], ".");
    size += sizes[i], count += counts[i];
  }
  require(size == scores.numel(), op, ": sizes must add up to ", scores.numel(), ".");
  const Tensor chosen = torch::stable::new_empty(scores, {count}, ScalarType::Long);
  by_type(scores, [&](auto zero) {
    int64_t start = 0, *out = out_ptr<int64_t>(chosen);
    for (size_t i = 0; i < sizes.size(); ++i) {
      out = take(in_ptr<decltype(zero)>(scores), start, sizes[i], counts[i], out);
      start += sizes[i];
    }
  });
  return chosen;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("topk", TORCH_BOX(&fedsparse::topk)); }
