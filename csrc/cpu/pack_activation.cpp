// pack_activation: of each sample x[b] keep the `count` entries of largest magnitude that are not 0, as a
// bitmap and
//                  the kept values in order; of equal magnitudes the lower index is kept.
// unpack_activation: the sample with zeros at all other places.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <tuple>
#include <vector>

#include "bits.h"
#include "check.h"
#include "isa.h"
#include "magnitude.h"

namespace fedsparse {
namespace {

// What is kept of one sample: all magnitudes above the threshold, and the first `ties` of those equal to it.
template <typename T>
struct Selection {
  KeyOf<T> threshold = 0;
  int64_t ties = 0;
  int64_t kept = 0;
};

// Counts by the next digit, bits shift to before - 1, of the magnitudes whose higher bits are `prefix`.
template <typename T>
class Histogram {
 public:
  static constexpr int kTop = 8 * sizeof(T) - 1;

  Histogram(const T* x, int64_t n, int before, int shift, KeyOf<T> prefix) {
    const KeyOf<T> digit = (KeyOf<T>{1} << (before - shift)) - 1;
    if (before == kTop) {
      for (int64_t i = 0; i < n; ++i) ++counts_[magnitude(x[i]) >> shift];
      return;
    }
    over_words(n, [&](int64_t first, int64_t count) {
      const T* at = x + first;
      over_bits(flag_word(count, [&](int64_t i) { return magnitude(at[i]) >> before == prefix; }),
                [&](int i) { ++counts_[(magnitude(at[i]) >> shift) & digit]; });
    });
  }

  int64_t operator[](KeyOf<T> digit) const { return counts_[digit]; }

 private:
  std::array<uint32_t, 1 << kDigit> counts_{};
};

// Radix selection from the highest digit down; each step fixes one more digit of the threshold.
template <typename T>
Selection<T> select(const T* x, int64_t n, int64_t count) {
  Selection<T> chosen;
  if (count == n) {
    if constexpr (std::is_same_v<T, float>) {
      if (const auto count_set = chosen_isa().zeros.count_set) {
        chosen.kept = count_set(x, n);
        return chosen;
      }
    }
    over_words(n, [&](int64_t first, int64_t size) {
      chosen.kept += std::popcount(flag_word(size, [&](int64_t i) { return magnitude(x[first + i]) != 0; }));
    });
    return chosen;
  }
  int64_t missing = count;
  for (int before = Histogram<T>::kTop; before > 0;) {
    const int shift = std::max(0, before - kDigit);
    const Histogram<T> counts(x, n, before, shift, chosen.threshold);
    KeyOf<T> digit = (KeyOf<T>{1} << (before - shift)) - 1;
    for (; counts[digit] < missing; --digit) missing -= counts[digit];
    chosen.threshold = chosen.threshold << (before - shift) | digit;
    before = shift;
  }
  // A threshold of 0 means that there are fewer entries than asked for that are not 0; zeros need no storing.
  chosen.ties = chosen.threshold ? missing : 0;
  chosen.kept = chosen.threshold ? count : count - missing;
  return chosen;
}

// Clears the highest bits until at most `quota` are left.
uint64_t lowest_bits(uint64_t word, int64_t quota) {
  for (int64_t extra = std::popcount(word) - quota; extra > 0; --extra) word &= ~std::bit_floor(word);
  return word;
}

template <typename T, typename Stored>
void write_sample(const T* x, int64_t n, const Selection<T>& chosen, uint8_t* bits, Stored* values) {
  if constexpr (std::is_same_v<T, float> && std::is_same_v<Stored, float>) {
    const auto compress = chosen_isa().zeros.compress;
    if (chosen.threshold == 0 && compress) return compress(x, n, bits, values, chosen.kept);
  }
  int64_t ties = chosen.ties;
  over_words(n, [&](int64_t first, int64_t count) {
    const T* at = x + first;
    uint64_t word = flag_word(count, [&](int64_t i) { return magnitude(at[i]) > chosen.threshold; });
    if (ties > 0) {
      const uint64_t equal = lowest_bits(
          flag_word(count, [&](int64_t i) { return magnitude(at[i]) == chosen.threshold; }), ties);
      ties -= std::popcount(equal);
      word |= equal;
    }
    write_word(bits, first, count, word);
    over_bits(word, [&](int i) { *values++ = static_cast<Stored>(at[i]); });
  });
}

template <typename T, typename Stored>
void write_samples(const Tensor& x, const std::vector<Selection<T>>& chosen, const Tensor& bits,
                   const Tensor& starts, const Tensor& values) {
  const int64_t n = x.size(1);
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      write_sample(in_ptr<T>(x) + b * n, n, chosen[b], out_ptr<uint8_t>(bits) + b * bitmap_bytes(n),
                   out_ptr<Stored>(values) + in_ptr<int64_t>(starts)[b]);
    }
  });
}

using Packed = std::tuple<Tensor, Tensor, Tensor>;

template <typename T>
Packed pack(const Tensor& x, int64_t count, bool bfloat16) {
  const int64_t batch = x.size(0), n = x.size(1);
  std::vector<Selection<T>> chosen(batch);
  torch::stable::parallel_for(0, count ? batch : 0, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) chosen[b] = select(in_ptr<T>(x) + b * n, n, count);
  });
  const Tensor bits = torch::stable::new_zeros(x, {batch, bitmap_bytes(n)}, ScalarType::Byte);
  const Tensor starts = torch::stable::new_zeros(x, {batch + 1}, ScalarType::Long);
  for (int64_t b = 0; b < batch; ++b)
    out_ptr<int64_t>(starts)[b + 1] = in_ptr<int64_t>(starts)[b] + chosen[b].kept;
  const auto type = bfloat16 ? ScalarType::BFloat16 : x.scalar_type();
  const Tensor values = torch::stable::new_empty(x, {in_ptr<int64_t>(starts)[batch]}, type);
  if (count == 0) return {bits, values, starts};
  if constexpr (sizeof(T) == 4) {
    if (bfloat16) {
      write_samples<T, Bfloat16>(x, chosen, bits, starts, values);
      return {bits, values, starts};
    }
  }
  write_samples<T, T>(x, chosen, bits, starts, values);
  return {bits, values, starts};
}

Packed pack_activation(Tensor x_in, int64_t count, bool bfloat16) {
  const char* op = "pack_activation";
  const Tensor x = checked_floats(op, "x", x_in, 2);
  require(count >= 0 && count <= x.size(1), op, ": count must be between 0 and ", x.size(1), ", not ", count,
          ".");
  require(x.size(1) < int64_t{1} << 32, op, ": a sample has 2^32 entries or more.");
  require(!bfloat16 || x.scalar_type() == ScalarType::Float, op, ": only float32 is stored as bfloat16.");
  return by_type(x, [&](auto zero) { return pack<decltype(zero)>(x, count, bfloat16); });
}

// Whether the instruction set has a kernel for it, which has then run.
template <typename Stored>
bool expanded(const uint8_t* bits, const Stored* values, int64_t kept, int64_t n, float* x) {
  const Zeros& zeros = chosen_isa().zeros;
  if constexpr (std::is_same_v<Stored, float>) {
    if (zeros.expand) zeros.expand(bits, values, kept, n, x);
  } else {
    if (zeros.expand_bfloat16) zeros.expand_bfloat16(bits, &values->bits, kept, n, x);
  }
  return zeros.expand && zeros.expand_bfloat16;
}

template <typename T, typename Stored>
void read_samples(const Tensor& bits, const Tensor& values, const Tensor& starts, const Tensor& x) {
  const int64_t n = x.size(1);
  torch::stable::parallel_for(0, x.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const auto* flags = in_ptr<uint8_t>(bits) + b * bitmap_bytes(n);
      const auto* value = in_ptr<Stored>(values) + in_ptr<int64_t>(starts)[b];
      T* row = out_ptr<T>(x) + b * n;
      if constexpr (std::is_same_v<T, float>) {
        const auto* start = in_ptr<int64_t>(starts) + b;
        if (expanded(flags, value, start[1] - start[0], n, row)) continue;
      }
      std::fill_n(row, n, T{0});
      over_words(n, [&](int64_t first, int64_t count) {
        over_bits(read_word(flags, first, count), [&](int i) { row[first + i] = static_cast<T>(*value++); });
      });
    }
  });
}

// Reading past the values is what a wrong bitmap would do, so the bits of each sample are counted first.
void check_packed(const char* op, const Tensor& bits, const Tensor& values, const Tensor& starts, int64_t n) {
  require(bits.scalar_type() == ScalarType::Byte && starts.scalar_type() == ScalarType::Long, op,
          ": bits must be uint8 and starts int64.");
  require(n >= 0 && bits.size(1) == bitmap_bytes(n) && starts.size(0) == bits.size(0) + 1, op,
          ": bits must have shape (B, ", bitmap_bytes(n), ") and starts (B + 1).");
  const auto* start = in_ptr<int64_t>(starts);
  require(start[0] == 0 && start[bits.size(0)] == values.numel(), op, ": starts must rise from 0 to ",
          values.numel(), ".");
  for (int64_t b = 0; b < bits.size(0); ++b) {
    int64_t set = 0;
    over_words(n, [&](int64_t first, int64_t count) {
      set += std::popcount(read_word(in_ptr<uint8_t>(bits) + b * bitmap_bytes(n), first, count));
    });
    require(start[b] + set == start[b + 1], op, ": sample ", b, " has ", set, " bits but ",
            start[b + 1] - start[b], " values.");
  }
}

Tensor unpack_activation(Tensor bits_in, Tensor values_in, Tensor starts_in, int64_t n) {
  const char* op = "unpack_activation";
  require_dims(op, "bits", bits_in, 2);
  require_dims(op, "values", values_in, 1);
  require_dims(op, "starts", starts_in, 1);
  const Tensor bits = torch::stable::contiguous(bits_in), values = torch::stable::contiguous(values_in),
               starts = torch::stable::contiguous(starts_in);
  check_packed(op, bits, values, starts, n);
  const bool bfloat16 = values.scalar_type() == ScalarType::BFloat16;
  require(bfloat16 || values.scalar_type() == ScalarType::Float || values.scalar_type() == ScalarType::Double,
          op, ": values must be bfloat16, float32 or float64.");
  const Tensor x = torch::stable::new_empty(values, {bits.size(0), n},
                                            bfloat16 ? ScalarType::Float : values.scalar_type());
  if (bfloat16) {
    read_samples<float, Bfloat16>(bits, values, starts, x);
  } else {
    by_type(x, [&](auto zero) { read_samples<decltype(zero), decltype(zero)>(bits, values, starts, x); });
  }
  return x;
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("pack_activation", TORCH_BOX(&fedsparse::pack_activation));
  m.impl("unpack_activation", TORCH_BOX(&fedsparse::unpack_activation));
}
