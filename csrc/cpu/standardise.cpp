// standardise: gain * (w - mean) / sqrt(sum (w - mean)^2) over the active weights of each row, and the
// gradients of w and gain.  Sums are in double, in an order that depends on the row's length alone.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "blocked.h"
#include "check.h"

namespace fedsparse {
namespace {

template <typename Term>
double sum_of(int64_t count, const Term& term) {
  constexpr int64_t kSums = 8;
  double sums[kSums] = {};
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums)
    for (int64_t k = 0; k < kSums; ++k) sums[k] += term(i + k);
  for (; i < count; ++i) sums[0] += term(i);
  return ((sums[0] + sums[1]) + (sums[2] + sums[3])) + ((sums[4] + sums[5]) + (sums[6] + sums[7]));
}

// A row's weights as (w - mean) * scale; free: whether the scale depends on them.
template <typename T>
struct Row {
  Row(const T* values, int64_t size, double least) : w(values), count(size) {
    const double most = static_cast<double>(std::max<int64_t>(1, count));
    mean = sum_of(count, [&](int64_t i) { return static_cast<double>(w[i]); }) / most;
    const double squares = sum_of(count, [&](int64_t i) {
      const double centred = static_cast<double>(w[i]) - mean;
      return centred * centred;
    });
    free = squares > least;
    scale = 1 / std::sqrt(std::max(squares, least));
  }
  double unit(int64_t i) const { return (static_cast<double>(w[i]) - mean) * scale; }

  const T* w;
  int64_t count;
  double mean, scale;
  bool free;
};

// Calls body(row number, first weight, Row) for every row, on torch's threads.
template <typename T, typename Body>
void over_rows(const Tensor& values, const Tensor& starts, double least, const Body& body) {
  const auto* start = in_ptr<int32_t>(starts);
  const int64_t rows = starts.numel() - 1;
  torch::stable::parallel_for(
      0, rows, move_grain(values.numel() / std::max<int64_t>(1, rows)), [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n)
          body(n, start[n], Row<T>(in_ptr<T>(values) + start[n], start[n + 1] - start[n], least));
      });
}

Tensor checked_starts(const char* op, const Tensor& values, const Tensor& gain, const Tensor& starts_in) {
  const Tensor starts = checked_indices(op, "starts", starts_in);
  require_same_type(op, "gain", gain, values);
  require(starts.numel() == gain.numel() + 1, op, ": starts must have one entry more than gain.");
  const auto* start = in_ptr<int32_t>(starts);
  require(
      start[0] == 0 && start[gain.numel()] == values.numel() && std::is_sorted(start, start + starts.numel()),
      op, ": starts must rise from 0 to ", values.numel(), ".");
  return starts;
}

Tensor standardise(Tensor values_in, Tensor gain_in, Tensor starts_in, double least) {
  const char* op = "standardise";
  const Tensor values = checked_floats(op, "values", values_in, 1),
               gain = checked_floats(op, "gain", gain_in, 1);
  const Tensor starts = checked_starts(op, values, gain, starts_in);
  const Tensor used = torch::stable::new_empty(values, {values.numel()});
  by_type(values, [&](auto zero) {
    using T = decltype(zero);
    over_rows<T>(values, starts, least, [&](int64_t n, int64_t first, const Row<T>& row) {
      const auto factor = static_cast<double>(in_ptr<T>(gain)[n]);
      T* const out = out_ptr<T>(used) + first;
      for (int64_t i = 0; i < row.count; ++i) out[i] = static_cast<T>(row.unit(i) * factor);
    });
  });
  return used;
}

std::tuple<Tensor, Tensor> standardise_gradient(Tensor g_in, Tensor values_in, Tensor gain_in,
                                                Tensor starts_in, double least) {
  const char* op = "standardise_gradient";
  const Tensor values = checked_floats(op, "values", values_in, 1),
               gain = checked_floats(op, "gain", gain_in, 1), g = checked_floats(op, "g", g_in, 1);
  const Tensor starts = checked_starts(op, values, gain, starts_in);
  require_same_type(op, "g", g, values);
  require(g.numel() == values.numel(), op, ": g must have ", values.numel(), " entries.");
  const Tensor dvalues = torch::stable::new_empty(values, {values.numel()});
  const Tensor dgain = torch::stable::new_empty(values, {gain.numel()});
  by_type(values, [&](auto zero) {
    using T = decltype(zero);
    over_rows<T>(values, starts, least, [&](int64_t n, int64_t first, const Row<T>& row) {
      const T* const gradient = in_ptr<T>(g) + first;
      const auto at = [&](int64_t i) { return static_cast<double>(gradient[i]); };
      const auto factor = static_cast<double>(in_ptr<T>(gain)[n]);
      const double along = sum_of(row.count, [&](int64_t i) { return row.unit(i) * at(i); });
      const double mean = sum_of(row.count, at) / static_cast<double>(std::max<int64_t>(1, row.count));
      const double turned = row.free ? along : 0;
      out_ptr<T>(dgain)[n] = static_cast<T>(along);
      T* const out = out_ptr<T>(dvalues) + first;
      for (int64_t i = 0; i < row.count; ++i)
        out[i] = static_cast<T>(row.scale * factor * (at(i) - mean - row.unit(i) * turned));
    });
  });
  return {dvalues, dgain};
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("standardise", TORCH_BOX(&fedsparse::standardise));
  m.impl("standardise_gradient", TORCH_BOX(&fedsparse::standardise_gradient));
}
