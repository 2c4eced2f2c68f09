// Sums over lanes and transposes of the vectors of vector.h, under the same rules.
#pragma once

#if defined(__clang__)
#include <utility>
#endif

#include "vector.h"

namespace fedsparse {
namespace {

// Lane j of the result is lane Lane::of(j) of a followed by b.
#if defined(__clang__)
template <typename Lane, typename T, int... J>
inline typename Vector<T>::type shuffle_lanes(typename Vector<T>::type a, typename Vector<T>::type b,
                                              std::integer_sequence<int, J...>) {
  return __builtin_shufflevector(a, b, Lane::of(J)...);
}
template <typename Lane, typename T>
inline typename Vector<T>::type shuffle(typename Vector<T>::type a, typename Vector<T>::type b) {
  return shuffle_lanes<Lane, T>(a, b, std::make_integer_sequence<int, Vector<T>::kWidth>{});
}
#else
template <typename Lane, typename T>
inline typename Vector<T>::type shuffle(typename Vector<T>::type a, typename Vector<T>::type b) {
  typename Vector<T>::index lanes;
#pragma GCC unroll 16
  for (int j = 0; j < Vector<T>::kWidth; ++j) lanes[j] = Lane::of(j);
  return __builtin_shuffle(a, b, lanes);
}
#endif

// Lanes of a where bit D of the lane number is clear, of b where it is set.
template <int D, int Width>
struct Straight {
  static constexpr int of(int j) { return (j & D) ? Width + j : j; }
};

// The other half: a[j + D] where bit D of j is clear, b[j - D] where it is set.
template <int D, int Width>
struct Crossed {
  static constexpr int of(int j) { return (j & D) ? Width + j - D : j + D; }
};

// The two halves of a transpose: the lanes with bit D clear of both, and those with it set.
template <int D, int Width>
struct Low {
  static constexpr int of(int j) { return (j & D) ? Width + j - D : j; }
};
template <int D, int Width>
struct High {
  static constexpr int of(int j) { return (j & D) ? Width + j : j + D; }
};

// r[0] of the result holds, in lane j, the sum of the lanes of r[j].
template <int D, typename T>
inline void sum_lanes(typename Vector<T>::type (&r)[Vector<T>::kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < D; ++i)
    r[i] = shuffle<Straight<D, Vector<T>::kWidth>, T>(r[i], r[i + D]) +
           shuffle<Crossed<D, Vector<T>::kWidth>, T>(r[i], r[i + D]);
  if constexpr (D > 1) sum_lanes<D / 2, T>(r);
}

// Swaps bit D of the row with bit D of the lane, for D and every smaller power of two: a transpose.
template <int D, typename T>
inline void transpose(typename Vector<T>::type (&r)[Vector<T>::kWidth]) {
#pragma GCC unroll 16
  for (int i = 0; i < Vector<T>::kWidth; ++i) {
    if (i & D) continue;
    const typename Vector<T>::type a = r[i], b = r[i + D];
    r[i] = shuffle<Low<D, Vector<T>::kWidth>, T>(a, b);
    r[i + D] = shuffle<High<D, Vector<T>::kWidth>, T>(a, b);
  }
  if constexpr (D > 1) transpose<D / 2, T>(r);
}

}  // namespace
}  // namespace fedsparse
