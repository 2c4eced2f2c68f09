// The largest magnitudes of each of 16 images that lie side by side, in lines of 16 floats (pack_images), and
// lines from what was kept. Included by kernels.cpp, under its rules.
//
// A threshold is looked for among few: a sample of lines gives bounds that surely nearly all thresholds lie
// between, one pass counts what is above them and collects what is between, and bisection of those counts
// finds the threshold itself. A lane whose threshold is not between the bounds is looked for among all.
#pragma once

#include "zeros.h"

namespace fedsparse {
namespace {

constexpr int64_t kImages = 16;
constexpr int32_t kTopBit = 30, kMost = 0x7fffffff;
// Bits of a bound that need not be exact.
constexpr int32_t kLoose = 15;

inline __m256i magnitudes(const float* x) {
  return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)), _mm256_set1_epi32(kMost));
}
inline __m256i load_ints(const int32_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
inline void store_ints(int32_t* to, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), v); }
inline uint32_t mask_of(__m256i v) {
  return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(v)));
}

// Of each lane, how many magnitudes are above the limit.
void count_above(const float* x, int64_t lines, const int32_t* limit, int32_t* counts) {
  const __m256i low = load_ints(limit), high = load_ints(limit + kByte);
  __m256i found_low = _mm256_setzero_si256(), found_high = _mm256_setzero_si256();
  for (int64_t i = 0; i < lines; ++i, x += kImages) {
    found_low = _mm256_sub_epi32(found_low, _mm256_cmpgt_epi32(magnitudes(x), low));
    found_high = _mm256_sub_epi32(found_high, _mm256_cmpgt_epi32(magnitudes(x + kByte), high));
  }
  store_ints(counts, found_low);
  store_ints(counts + kByte, found_high);
}

// Of each lane the magnitude of that rank, 1 the largest, with the bits below `lowest` clear; 0 where the
// rank is beyond the lines, all bits set where it is below 1.
void of_rank(const float* x, int64_t lines, int32_t rank, int32_t lowest, int32_t* found) {
  int32_t limit[kImages], counts[kImages];
  for (int64_t lane = 0; lane < kImages; ++lane) found[lane] = 0;
  for (int32_t bit = kTopBit; bit >= lowest; --bit) {
    for (int64_t lane = 0; lane < kImages; ++lane) limit[lane] = (found[lane] | 1 << bit) - 1;
    count_above(x, lines, limit, counts);
    for (int64_t lane = 0; lane < kImages; ++lane)
      if (counts[lane] >= rank) found[lane] |= 1 << bit;
  }
}

// Of a lane whose threshold is known, how many are above it and how many at least as large: what the writing
// pass needs.
inline void choose_lane(Chosen& chosen, int64_t lane, int32_t threshold, int64_t above, int64_t at_least,
                        int64_t count) {
  const bool all = at_least <= count;  // nothing that is equal to the threshold is left out
  chosen.above[lane] = threshold - (all && threshold > 0);
  chosen.ties[lane] = all || threshold == 0 ? 0 : static_cast<int32_t>(count - above);
  chosen.kept += threshold == 0 ? above : count;
}

// A lane without an image keeps nothing.
inline void choose_none(Chosen& chosen, int64_t lane) {
  chosen.above[lane] = kMost;
  chosen.ties[lane] = 0;
}

void select_among_all(const Lanes& x, int64_t count, Chosen& chosen) {
  int32_t found[kImages], below[kImages], above[kImages], at_least[kImages];
  of_rank(x.data, x.lines, static_cast<int32_t>(count), 0, found);
  for (int64_t lane = 0; lane < kImages; ++lane) below[lane] = found[lane] - (found[lane] > 0);
  count_above(x.data, x.lines, found, above);
  count_above(x.data, x.lines, below, at_least);
  for (int64_t lane = 0; lane < x.valid; ++lane)
    choose_lane(chosen, lane, found[lane], above[lane], at_least[lane], count);
}

// Magnitudes of one lane.
struct Row {
  const int32_t* data;
  int64_t size;

  int64_t above(int32_t limit) const {
    const __m256i bound = _mm256_set1_epi32(limit);
    __m256i found = _mm256_setzero_si256();
    int64_t i = 0, count = 0;
    for (; i + kByte <= size; i += kByte)
      found = _mm256_sub_epi32(found, _mm256_cmpgt_epi32(load_ints(data + i), bound));
    int32_t eight[kByte];
    store_ints(eight, found);
    for (const int32_t one : eight) count += one;
    for (; i < size; ++i) count += data[i] > limit;
    return count;
  }
};

// What lies between the bounds, lane by lane, `room` of each at most, and how many lie above.
struct Between {
  const int32_t *low, *high;
  int32_t* rows;
  int64_t room;
  int64_t sizes[kImages];
  int32_t above[kImages];

  // False where a lane has no room.
  bool collect(const float* x, int64_t lines) {
    constexpr int64_t kLines = 128;
    alignas(32) int32_t found[kLines * kByte + kByte];
    uint8_t lanes[kLines * kByte + kByte];
    for (int64_t lane = 0; lane < kImages; ++lane) sizes[lane] = 0;
    for (int64_t half = 0; half < kImages; half += kByte) store_ints(above + half, _mm256_setzero_si256());
    for (int64_t first = 0; first < lines; first += kLines) {
      const int64_t count = lines - first < kLines ? lines - first : kLines;
      for (int64_t half = 0; half < kImages; half += kByte) {
        const int64_t size = compress_half(x + first * kImages + half, count, half, found, lanes);
        for (int64_t lane = half; lane < half + kByte; ++lane)
          if (sizes[lane] + count > room) return false;
        for (int64_t i = 0; i < size; ++i) {
          const int64_t lane = half + lanes[i];
          rows[lane * room + sizes[lane]++] = found[i];
        }
      }
    }
    return true;
  }

 private:
  int64_t compress_half(const float* x, int64_t lines, int64_t half, int32_t* found, uint8_t* lanes) {
    const __m256i most = load_ints(high + half),
                  below = _mm256_sub_epi32(load_ints(low + half), _mm256_set1_epi32(1));
    __m256i larger = load_ints(above + half);
    int64_t size = 0;
    for (int64_t i = 0; i < lines; ++i, x += kImages) {
      const __m256i magnitude = magnitudes(x), over = _mm256_cmpgt_epi32(magnitude, most);
      larger = _mm256_sub_epi32(larger, over);
      const uint32_t flags = mask_of(_mm256_andnot_si256(over, _mm256_cmpgt_epi32(magnitude, below)));
      store_ints(found + size, _mm256_permutevar8x32_epi32(magnitude, permutation(kByteTable.set[flags])));
      __builtin_memcpy(lanes + size, kByteTable.set[flags], kByte);
      size += __builtin_popcount(flags);
    }
    store_ints(above + half, larger);
    return size;
  }
};

// False where a threshold is not between the bounds that the sample gave.
bool select_by_sample(const Lanes& x, int64_t count, const Sampling& sampling, int32_t* scratch,
                      Chosen& chosen) {
  float* const sample = reinterpret_cast<float*>(scratch);
  const int64_t step = x.lines / sampling.lines;
  for (int64_t i = 0; i < sampling.lines; ++i) {
    // Not evenly spaced: images have a period of their own.
    const int64_t line = i * step + static_cast<int64_t>((static_cast<uint64_t>(i) * 2654435761u >> 12) %
                                                         static_cast<uint64_t>(step));
    __builtin_memcpy(sample + i * kImages, x.data + line * kImages, kImages * sizeof(float));
  }
  int32_t low[kImages], high[kImages];
  of_rank(sample, sampling.lines, sampling.last, kLoose, low);
  of_rank(sample, sampling.lines, sampling.first, kLoose, high);
  for (int64_t lane = 0; lane < kImages; ++lane) {
    const bool valid = lane < x.valid;
    low[lane] = !valid ? kMost : low[lane] > 0 ? low[lane] : 1;  // 0 is never kept
    high[lane] = valid ? high[lane] | ((1 << kLoose) - 1) : kMost;
  }
  Between between{low, high, scratch, sampling.room, {}, {}};
  if (!between.collect(x.data, x.lines)) return false;
  for (int64_t lane = 0; lane < x.valid; ++lane) {
    const Row row{between.rows + lane * sampling.room, between.sizes[lane]};
    const int64_t missing = count - between.above[lane];
    if (missing <= 0 || (missing > row.size && low[lane] > 1)) return false;
    if (missing > row.size) {
      choose_lane(chosen, lane, 0, between.above[lane] + row.size, x.lines, count);
      continue;
    }
    int32_t least = low[lane], most = high[lane];
    while (least < most) {
      const int32_t middle = least + (most - least + 1) / 2;
      if (row.above(middle - 1) >= missing)
        least = middle;
      else
        most = middle - 1;
    }
    choose_lane(chosen, lane, least, between.above[lane] + row.above(least),
                between.above[lane] + row.above(least - 1), count);
  }
  return true;
}

void select_largest(const Lanes& x, int64_t count, const Sampling& sampling, int32_t* scratch,
                    Chosen& chosen) {
  Chosen found{};
  for (int64_t lane = x.valid; lane < kImages; ++lane) choose_none(found, lane);
  if (sampling.lines > 0 && select_by_sample(x, count, sampling, scratch, found)) {
    chosen = found;
    return;
  }
  found.kept = 0;
  select_among_all(x, count, found);
  chosen = found;
}

// Eight floats as bfloat16, rounded to the nearest, ties to even; NaN stays NaN.
inline __m128i to_bfloat16(__m256 x) {
  const __m256i word = _mm256_castps_si256(x), high = _mm256_srli_epi32(word, 16);
  const __m256i odd = _mm256_and_si256(high, _mm256_set1_epi32(1));
  const __m256i rounded =
      _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(word, _mm256_set1_epi32(0x7fff)), odd), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i all = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
}

inline void store_eight(float* to, __m256 x) { _mm256_storeu_ps(to, x); }
inline void store_eight(uint16_t* to, __m256 x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), to_bfloat16(x));
}

// The flags of eight lanes from `half` on, those of equal magnitude while the lane has ties left.
inline uint32_t tied_flags(__m256i magnitude, const Chosen& chosen, int32_t* ties, int64_t half) {
  uint32_t kept = 0;
  uint32_t equal = mask_of(_mm256_cmpeq_epi32(magnitude, load_ints(chosen.above + half)));
  for (; equal; equal &= equal - 1) {
    const int lane = __builtin_ctz(equal);
    if (ties[half + lane] <= 0) continue;
    --ties[half + lane];
    kept |= 1u << lane;
  }
  return kept;
}

template <typename Stored>
void write_largest(const Lanes& x, const Chosen& chosen, uint8_t* bits, Stored* values) {
  int32_t ties[kImages];
  bool any = false;
  for (int64_t lane = 0; lane < kImages; ++lane) any |= (ties[lane] = chosen.ties[lane]) > 0;
  const __m256i limits[2] = {load_ints(chosen.above), load_ints(chosen.above + kByte)};
  const Stored* const end = values + chosen.kept;
  const float* at = x.data;
  for (int64_t i = 0; i < 2 * x.lines; ++i, at += kByte) {
    const __m256i magnitude = magnitudes(at);
    uint32_t flags = mask_of(_mm256_cmpgt_epi32(magnitude, limits[i & 1]));
    if (any) flags |= tied_flags(magnitude, chosen, ties, kByte * (i & 1));
    bits[i] = static_cast<uint8_t>(flags);
    const __m256 moved = _mm256_permutevar8x32_ps(_mm256_loadu_ps(at), permutation(kByteTable.set[flags]));
    const int64_t size = __builtin_popcount(flags);
    if (values + kByte <= end) {
      store_eight(values, moved);
    } else {
      Stored eight[kByte];
      store_eight(eight, moved);
      for (int64_t j = 0; j < size; ++j) values[j] = eight[j];
    }
    values += size;
  }
}

}  // namespace
}  // namespace fedsparse
