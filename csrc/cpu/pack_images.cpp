// pack_images: what pack_activation keeps of x [batch, channels, height, width], of x in blocks of images: of
// each image, a lane of its block, the `count` entries of largest magnitude that are not 0.  One row of bits
// a block; lanes without an image keep nothing.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <tuple>
#include <vector>

#include "bits.h"
#include "blocked_tensor.h"
#include "isa.h"
#include "magnitude.h"

namespace fedsparse {
namespace {

// What is kept of each lane: all magnitudes above the threshold, and the first `ties` of those equal to it.
// The thresholds stand as often as a word of flags has lines.
template <typename T>
struct LaneSelection {
  std::array<KeyOf<T>, kWord> threshold{};
  std::array<int64_t, kLanes<T>> ties{};
  bool any_ties = false;
  int64_t kept = 0;
};

template <typename T>
std::array<KeyOf<T>, kWord> repeated(const std::array<KeyOf<T>, kLanes<T>>& lanes) {
  std::array<KeyOf<T>, kWord> all;
  for (int64_t i = 0; i < kWord; ++i) all[i] = lanes[i % kLanes<T>];
  return all;
}

// Counts, for each lane, by the next digit, bits shift to before - 1, of the magnitudes whose higher bits are
// that lane's prefix.
template <typename T>
void count_digits(const T* x, int64_t n, int before, int shift, const std::array<KeyOf<T>, kLanes<T>>& prefix,
                  std::vector<uint32_t>& counts) {
  std::fill(counts.begin(), counts.end(), 0);
  if (before == 8 * static_cast<int>(sizeof(T)) - 1) {
    for (int64_t i = 0; i < n; i += kLanes<T>)
      for (int64_t lane = 0; lane < kLanes<T>; ++lane)
        ++counts[(lane << kDigit) + static_cast<int64_t>(magnitude(x[i + lane]) >> shift)];
    return;
  }
  const auto wanted = repeated<T>(prefix);
  const KeyOf<T> digit = (KeyOf<T>{1} << (before - shift)) - 1;
  over_words(n, [&](int64_t first, int64_t size) {
    const T* at = x + first;
    over_bits(
        flag_word(size, [&](int64_t i) { return magnitude(at[i]) >> before == wanted[i]; }), [&](int i) {
          ++counts[((i % kLanes<T>) << kDigit) + static_cast<int64_t>((magnitude(at[i]) >> shift) & digit)];
        });
  });
}

// Radix selection from the highest digit down, in all lanes at once.
template <typename T>
LaneSelection<T> select_lanes(const T* x, int64_t n, int64_t valid, int64_t count) {
  std::array<KeyOf<T>, kLanes<T>> prefix{};
  std::array<int64_t, kLanes<T>> missing;
  missing.fill(count);
  std::vector<uint32_t> counts(kLanes<T> << kDigit);
  for (int before = 8 * static_cast<int>(sizeof(T)) - 1; before > 0;) {
    const int shift = std::max(0, before - kDigit);
    count_digits(x, n, before, shift, prefix, counts);
    for (int64_t lane = 0; lane < valid; ++lane) {
      KeyOf<T> digit = (KeyOf<T>{1} << (before - shift)) - 1;
      const uint32_t* of_lane = counts.data() + (lane << kDigit);
      for (; of_lane[digit] < missing[lane]; --digit) missing[lane] -= of_lane[digit];
      prefix[lane] = prefix[lane] << (before - shift) | digit;
    }
    before = shift;
  }
  LaneSelection<T> chosen;
  for (int64_t lane = 0; lane < valid; ++lane) {
    // A threshold of 0 means that there are fewer entries than asked for that are not 0.
    chosen.ties[lane] = prefix[lane] ? missing[lane] : 0;
    chosen.any_ties = chosen.any_ties || chosen.ties[lane] > 0;
    chosen.kept += prefix[lane] ? count : count - missing[lane];
  }
  for (int64_t lane = valid; lane < kLanes<T>; ++lane) prefix[lane] = ~KeyOf<T>{0};
  chosen.threshold = repeated<T>(prefix);
  return chosen;
}

template <typename T, typename Stored>
void write_block(const T* x, int64_t n, LaneSelection<T> chosen, uint8_t* bits, Stored* values) {
  over_words(n, [&](int64_t first, int64_t size) {
    const T* at = x + first;
    uint64_t word = flag_word(size, [&](int64_t i) { return magnitude(at[i]) > chosen.threshold[i]; });
    if (chosen.any_ties)
      over_bits(flag_word(size, [&](int64_t i) { return magnitude(at[i]) == chosen.threshold[i]; }),
                [&](int i) {
                  if (chosen.ties[i % kLanes<T>] > 0) {
                    --chosen.ties[i % kLanes<T>];
                    word |= uint64_t{1} << i;
                  }
                });
    write_word(bits, first, size, word);
    over_bits(word, [&](int i) { *values++ = static_cast<Stored>(at[i]); });
  });
}

using Packed = std::tuple<Tensor, Tensor, Tensor>;

// Selections of all blocks, by plain loops.
template <typename T>
class Plain {
 public:
  Plain(const Tensor& x, int64_t batch, int64_t count)
      : x_(in_ptr<T>(x)), n_(x.numel() / x.size(0)), chosen_(x.size(0)) {
    torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
      for (int64_t b = begin; b < end; ++b)
        chosen_[b] = select_lanes(x_ + b * n_, n_, std::min(kLanes<T>, batch - b * kLanes<T>), count);
    });
  }
  int64_t kept(int64_t block) const { return chosen_[block].kept; }
  template <typename Stored>
  void write(int64_t block, uint8_t* bits, Stored* values) const {
    write_block(x_ + block * n_, n_, chosen_[block], bits, values);
  }

 private:
  const T* x_;
  int64_t n_;
  std::vector<LaneSelection<T>> chosen_;
};

// The bounds of a sample's ranks are five standard deviations from that of the threshold.
Sampling sampling_of(int64_t lines, int64_t count) {
  constexpr int64_t kSample = 1024, kFewest = 4 * kSample, kSlack = 64;
  if (lines < kFewest) return {0, 0, 0, 0};
  const double share = static_cast<double>(count) / static_cast<double>(lines), rank = share * kSample;
  const auto spread = static_cast<int32_t>(5 * std::sqrt(rank * (1 - share))) + 2;
  const auto middle = static_cast<int32_t>(rank);
  return {kSample, middle - spread, middle + spread, lines * (2 * spread + kSlack) / kSample + 256};
}

// The same by the instruction set's kernels.
class Vectorised {
 public:
  Vectorised(const Tensor& x, int64_t batch, int64_t count)
      : x_(in_ptr<float>(x)), lines_(x.size(1) * x.size(2) * x.size(3)), batch_(batch), chosen_(x.size(0)) {
    const Sampling sampling = sampling_of(lines_, count);
    const int64_t blocks = x.size(0), size = kLanes<float> * std::max(sampling.lines, sampling.room);
    const int64_t workers = std::min<int64_t>(torch::stable::get_num_threads(), blocks);
    const Tensor scratch = torch::stable::new_empty(x, {workers * size}, ScalarType::Int);
    torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
      for (int64_t worker = begin; worker < end; ++worker)
        for (int64_t b = worker * blocks / workers; b < (worker + 1) * blocks / workers; ++b)
          chosen_isa().largest.select(lanes(b), count, sampling, out_ptr<int32_t>(scratch) + worker * size,
                                      chosen_[b]);
    });
  }
  int64_t kept(int64_t block) const { return chosen_[block].kept; }
  void write(int64_t block, uint8_t* bits, float* values) const {
    chosen_isa().largest.write(lanes(block), chosen_[block], bits, values);
  }
  void write(int64_t block, uint8_t* bits, Bfloat16* values) const {
    chosen_isa().largest.write_bfloat16(lanes(block), chosen_[block], bits, &values->bits);
  }

 private:
  Lanes lanes(int64_t block) const {
    return {x_ + block * lines_ * kLanes<float>, lines_,
            std::min(kLanes<float>, batch_ - block * kLanes<float>)};
  }

  const float* x_;
  int64_t lines_, batch_;
  std::vector<Chosen> chosen_;
};

template <typename Stored, typename Selections>
Tensor write_all(const Selections& chosen, const Tensor& x, const Tensor& bits, const int64_t* start,
                 ScalarType type) {
  const Tensor values = torch::stable::new_empty(x, {start[x.size(0)]}, type);
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b)
      chosen.write(b, out_ptr<uint8_t>(bits) + b * bits.size(1), out_ptr<Stored>(values) + start[b]);
  });
  return values;
}

template <typename T, typename Selections>
Packed pack(const Selections& chosen, const Tensor& x, bool bfloat16) {
  const int64_t blocks = x.size(0);
  const Tensor bits =
      torch::stable::new_empty(x, {blocks, bitmap_bytes(x.numel() / blocks)}, ScalarType::Byte);
  const Tensor starts = torch::stable::new_zeros(x, {blocks + 1}, ScalarType::Long);
  int64_t* const start = out_ptr<int64_t>(starts);
  for (int64_t b = 0; b < blocks; ++b) start[b + 1] = start[b] + chosen.kept(b);
  if constexpr (sizeof(T) == 4)
    if (bfloat16) return {bits, write_all<Bfloat16>(chosen, x, bits, start, ScalarType::BFloat16), starts};
  return {bits, write_all<T>(chosen, x, bits, start, x.scalar_type()), starts};
}

Packed pack_nothing(const Tensor& x, bool bfloat16) {
  const int64_t blocks = x.size(0), n = x.numel() / std::max<int64_t>(1, blocks);
  return {torch::stable::new_zeros(x, {blocks, bitmap_bytes(n)}, ScalarType::Byte),
          torch::stable::new_empty(x, {0}, bfloat16 ? ScalarType::BFloat16 : x.scalar_type()),
          torch::stable::new_zeros(x, {blocks + 1}, ScalarType::Long)};
}

Packed pack_images(Tensor x_in, int64_t batch, int64_t count, bool bfloat16) {
  const char* op = "pack_images";
  const Tensor x = checked_blocked(op, "x", x_in);
  require_batch(op, x, batch);
  const int64_t n = x.size(1) * x.size(2) * x.size(3);
  require(count >= 0 && count <= n, op, ": count must be between 0 and ", n, ", not ", count, ".");
  require(n * x.size(4) < int64_t{1} << 32, op, ": a block has 2^32 entries or more.");
  require(!bfloat16 || x.scalar_type() == ScalarType::Float, op, ": only float32 is stored as bfloat16.");
  if (count == 0 || x.numel() == 0) return pack_nothing(x, bfloat16);
  return by_type(x, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (sizeof(T) == 4)
      if (chosen_isa().largest.select) return pack<T>(Vectorised(x, batch, count), x, bfloat16);
    return pack<T>(Plain<T>(x, batch, count), x, bfloat16);
  });
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("pack_images", TORCH_BOX(&fedsparse::pack_images)); }
