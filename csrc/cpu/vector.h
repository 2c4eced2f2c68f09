// Vectors of the instruction set that a file is compiled for.  Only for csrc/cpu/isa: everything here has
// internal linkage, and no standard header with inline code is included, so that no function made of one
// set's instructions can be linked in where another set runs.
#pragma once

#include "isa.h"

namespace fedsparse {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorSize = 64;
#elif defined(__AVX2__)
constexpr int kVectorSize = 32;
#else
constexpr int kVectorSize = 16;
#endif

template <int Bytes>
struct IntegerOf;
template <>
struct IntegerOf<4> {
  typedef int32_t type;
};
template <>
struct IntegerOf<8> {
  typedef int64_t type;
};

template <typename T>
struct Vector {
  static constexpr int kWidth = kVectorSize / static_cast<int>(sizeof(T));
  typedef T type __attribute__((vector_size(kVectorSize)));
  typedef typename IntegerOf<sizeof(T)>::type index __attribute__((vector_size(kVectorSize)));
  typedef T loose __attribute__((vector_size(kVectorSize), aligned(sizeof(T)), may_alias));
};

template <typename T>
inline typename Vector<T>::type load(const T* from) {
  return *reinterpret_cast<const typename Vector<T>::loose*>(from);
}

template <typename T>
inline void store(T* to, typename Vector<T>::type v) {
  *reinterpret_cast<typename Vector<T>::loose*>(to) = v;
}

// Keeps a loaded vector in its register, where the compiler would rather load it again at each use.
template <typename V>
inline void hold(V& v) {
#if defined(__x86_64__)
  asm("" : "+v"(v));
#endif
}

template <typename T>
inline typename Vector<T>::type broadcast(T value) {
  return value - typename Vector<T>::type{};
}

}  // namespace
}  // namespace fedsparse
