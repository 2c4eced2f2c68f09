// Compiled once for each instruction set, like kernels.cpp and under the same rules: internal linkage but for
// the table at the foot, no standard header with inline code.
#include "../lines.h"

#include "../vector.h"

namespace fedsparse {
namespace {

template <typename T>
constexpr int kLine = static_cast<int>(kLanes<T>);
template <typename T>
constexpr int kParts = kLine<T> / Vector<T>::kWidth;  // vectors of one line

// One line in registers.
template <typename T>
struct Line {
  typename Vector<T>::type part[kParts<T>];
};

// ---- one line at a time

#define FEDSPARSE_EACH(i) _Pragma("GCC unroll 8") for (int i = 0; i < kParts<T>; ++i)

template <typename T>
inline Line<T> read(const T* from) {
  Line<T> line;
  FEDSPARSE_EACH(i) line.part[i] = load(from + i * Vector<T>::kWidth);
  return line;
}

template <typename T>
inline void write(T* to, const Line<T>& line) {
  FEDSPARSE_EACH(i) store(to + i * Vector<T>::kWidth, line.part[i]);
}

template <typename T>
inline Line<T> filled(T value) {
  Line<T> line;
  FEDSPARSE_EACH(i) line.part[i] = broadcast(value);
  return line;
}

template <typename T>
inline Line<T> operator+(Line<T> a, const Line<T>& b) {
  FEDSPARSE_EACH(i) a.part[i] += b.part[i];
  return a;
}

template <typename T>
inline Line<T> operator-(Line<T> a, const Line<T>& b) {
  FEDSPARSE_EACH(i) a.part[i] -= b.part[i];
  return a;
}

template <typename T>
inline Line<T> multiply_add(const Line<T>& a, const Line<T>& b, Line<T> c) {
  FEDSPARSE_EACH(i) c.part[i] += a.part[i] * b.part[i];
  return c;
}

// value where sign is above zero or NaN, zero elsewhere: ReLU and its gradient, NaN kept as torch keeps it.
template <typename T>
inline Line<T> where_positive(const Line<T>& sign, Line<T> value) {
  FEDSPARSE_EACH(i) value.part[i] = sign.part[i] <= T(0) ? typename Vector<T>::type{} : value.part[i];
  return value;
}

// ---- normalisation

template <typename T, bool kRelu, bool kResidual>
void norm_as(const Norm<T>& n) {
  const Line<T> scale = read(n.scale), shift = read(n.shift);
  for (int64_t at = 0; at < n.lines * kLine<T>; at += kLine<T>) {
    Line<T> y = multiply_add(read(n.x + at), scale, shift);
    if constexpr (kResidual) y = y + read(n.residual + at);
    if constexpr (kRelu) y = where_positive(y, y);
    write(n.out + at, y);
  }
}

template <typename T>
void norm(const Norm<T>& n) {
  if (n.residual)
    n.relu ? norm_as<T, true, true>(n) : norm_as<T, false, true>(n);
  else
    n.relu ? norm_as<T, true, false>(n) : norm_as<T, false, false>(n);
}

enum class Gate { kOpen, kOutput, kRecomputed };

// Calls body(at, m) for each line: the gradient that ReLU let through.
template <Gate kGate, typename T, typename Body>
inline void each_gradient(const T* gy, const T* x, const T* out, const T* scale_at, const T* shift_at,
                          int64_t lines, const Body& body) {
  const Line<T> scale = read(scale_at), shift = read(shift_at);
  for (int64_t at = 0; at < lines * kLine<T>; at += kLine<T>) {
    Line<T> m = read(gy + at);
    if constexpr (kGate == Gate::kOutput) m = where_positive(read(out + at), m);
    if constexpr (kGate == Gate::kRecomputed) m = where_positive(multiply_add(read(x + at), scale, shift), m);
    body(at, m);
  }
}

template <typename T, Gate kGate, bool kKeep>
void norm_sums_as(const NormSums<T>& n) {
  const Line<T> mean = read(n.mean);
  Line<T> sum = filled(T(0)), product = filled(T(0));
  each_gradient<kGate>(n.gy, n.x, n.out, n.scale, n.shift, n.lines, [&](int64_t at, const Line<T>& m) {
    if constexpr (kKeep) write(n.masked + at, m);
    sum = sum + m;
    product = multiply_add(m, read(n.x + at) - mean, product);
  });
  write(n.sums, sum);
  write(n.sums + kLine<T>, product);
}

template <typename T>
void norm_sums(const NormSums<T>& n) {
  if (!n.relu)
    norm_sums_as<T, Gate::kOpen, false>(n);
  else if (n.out && n.masked)
    norm_sums_as<T, Gate::kOutput, true>(n);
  else if (n.out)
    norm_sums_as<T, Gate::kOutput, false>(n);
  else
    norm_sums_as<T, Gate::kRecomputed, false>(n);
}

template <typename T, Gate kGate>
void norm_apply_as(const NormApply<T>& n) {
  const Line<T> mean = read(n.mean), a = read(n.a), b = read(n.b), c = read(n.c);
  const T* none = nullptr;
  each_gradient<kGate>(n.gy, n.x, none, n.scale, n.shift, n.lines, [&](int64_t at, const Line<T>& m) {
    write(n.dx + at, multiply_add(m, a, multiply_add(read(n.x + at) - mean, b, c)));
  });
}

template <typename T>
void norm_apply(const NormApply<T>& n) {
  n.relu ? norm_apply_as<T, Gate::kRecomputed>(n) : norm_apply_as<T, Gate::kOpen>(n);
}

// Four running sums hide the latency of the additions.
template <typename T, typename Term>
inline void total(int64_t lines, T* sums, const Term& add) {
  Line<T> sum[4] = {filled(T(0)), filled(T(0)), filled(T(0)), filled(T(0))};
  int64_t line = 0;
  for (; line + 4 <= lines; line += 4)
    for (int k = 0; k < 4; ++k) sum[k] = add((line + k) * kLine<T>, sum[k]);
  for (; line < lines; ++line) sum[0] = add(line * kLine<T>, sum[0]);
  write(sums, (sum[0] + sum[1]) + (sum[2] + sum[3]));
}

template <typename T>
void sum(const T* x, int64_t lines, T* sums) {
  total(lines, sums, [&](int64_t at, const Line<T>& sum) { return sum + read(x + at); });
}

template <typename T>
void squares(const T* x, int64_t lines, const T* mean_at, T* sums) {
  const Line<T> mean = read(mean_at);
  total(lines, sums, [&](int64_t at, const Line<T>& sum) {
    const Line<T> apart = read(x + at) - mean;
    return multiply_add(apart, apart, sum);
  });
}

// ---- copies

template <typename T>
void copy(const T* from, int64_t lines, T* to) {
  for (int64_t at = 0; at < lines * kLine<T>; at += kLine<T>) write(to + at, read(from + at));
}

template <typename T>
void copy_valid(const T* from, int64_t lines, int64_t valid, T* to) {
  alignas(64) T place[kLine<T>];
  for (int lane = 0; lane < kLine<T>; ++lane) place[lane] = lane < valid ? T(1) : T(-1);
  const Line<T> present = read(place);
  for (int64_t at = 0; at < lines * kLine<T>; at += kLine<T>)
    write(to + at, where_positive(present, read(from + at)));
}

// ---- pooling

// Calls body(output line, first input line of the window, rows, columns) for each output pixel.
template <typename Body>
inline void each_window(const Windows& w, const Body& body) {
  for (int64_t y = 0; y < w.height; ++y)
    for (int64_t x = 0; x < w.width; ++x)
      body(y * w.width + x, w.top[y] * w.in_width + w.left[x], w.bottom[y] - w.top[y],
           w.right[x] - w.left[x]);
}

template <typename T>
void max(const Windows& w, const T* in, T* out, uint8_t* picked) {
  each_window(w, [&](int64_t to, int64_t from, int64_t rows, int64_t columns) {
    Line<T> best = read(in + from * kLine<T>), which = filled(T(0));
    T tap = 0;
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < columns; ++x, tap += 1) {
        const Line<T> value = read(in + (from + y * w.in_width + x) * kLine<T>);
        FEDSPARSE_EACH(i) {
          const auto v = value.part[i], b = best.part[i];
          which.part[i] = (v > b) | (v != v) ? broadcast(tap) : which.part[i];
          best.part[i] = (v > b) | (v != v) ? v : b;
        }
      }
    write(out + to * kLine<T>, best);
    alignas(64) T places[kLine<T>];
    write(places, which);
    for (int lane = 0; lane < kLine<T>; ++lane)
      picked[to * kLine<T> + lane] = static_cast<uint8_t>(places[lane]);
  });
}

template <typename T>
void max_gradient(const Windows& w, const T* gy, const uint8_t* picked, T* dx) {
  each_window(w, [&](int64_t to, int64_t from, int64_t rows, int64_t columns) {
    alignas(64) T places[kLine<T>];
    for (int lane = 0; lane < kLine<T>; ++lane) places[lane] = picked[to * kLine<T> + lane];
    const Line<T> which = read(places), gradient = read(gy + to * kLine<T>);
    T tap = 0;
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < columns; ++x, tap += 1) {
        T* at = dx + (from + y * w.in_width + x) * kLine<T>;
        Line<T> sum = read(at);
        FEDSPARSE_EACH(i)
        sum.part[i] += which.part[i] == broadcast(tap) ? gradient.part[i] : typename Vector<T>::type{};
        write(at, sum);
      }
  });
}

template <typename T>
inline Line<T> share(T divisor, int64_t size) {
  return filled(T(1) / (divisor == T(0) ? static_cast<T>(size) : divisor));
}

template <typename T>
void average(const Windows& w, T divisor, const T* in, T* out) {
  each_window(w, [&](int64_t to, int64_t from, int64_t rows, int64_t columns) {
    Line<T> sum = filled(T(0));
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < columns; ++x) sum = sum + read(in + (from + y * w.in_width + x) * kLine<T>);
    write(out + to * kLine<T>, multiply_add(sum, share(divisor, rows * columns), filled(T(0))));
  });
}

template <typename T>
void average_gradient(const Windows& w, T divisor, const T* gy, T* dx) {
  each_window(w, [&](int64_t to, int64_t from, int64_t rows, int64_t columns) {
    const Line<T> each = multiply_add(read(gy + to * kLine<T>), share(divisor, rows * columns), filled(T(0)));
    for (int64_t y = 0; y < rows; ++y)
      for (int64_t x = 0; x < columns; ++x) {
        T* at = dx + (from + y * w.in_width + x) * kLine<T>;
        write(at, read(at) + each);
      }
  });
}

template <typename T>
constexpr LineKernels<T> table() {
  return {&norm<T>,       &norm_sums<T>, &norm_apply<T>,   &sum<T>,     &squares<T>,         &copy<T>,
          &copy_valid<T>, &max<T>,       &max_gradient<T>, &average<T>, &average_gradient<T>};
}

}  // namespace

#define FEDSPARSE_JOIN(a, b) a##b
#define FEDSPARSE_TABLE(name) FEDSPARSE_JOIN(kLines_, name)

extern const LineTable FEDSPARSE_TABLE(FEDSPARSE_ISA) = {table<float>(), table<double>()};

}  // namespace fedsparse
