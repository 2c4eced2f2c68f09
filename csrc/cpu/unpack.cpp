// unpack: dense[n, c] = values[j] where (n, c) is nonzero j of the topology, 0 elsewhere.  gather: its
// adjoint.
#include "../unpack.h"

#include <algorithm>

namespace fedsparse {
namespace {

using torch::stable::Tensor;

// Work below this many elements is not worth a second thread.
constexpr int64_t kGrain = 1 << 15;

struct CpuUnpack {
  template <typename Word>
  static void unpack(const Tensor& values, const Tensor& indptr, const Tensor& cols, int64_t granularity,
                     int64_t row_len, Tensor& dense) {
    const auto* value = static_cast<const Word*>(values.data_ptr());
    const auto* start = static_cast<const int32_t*>(indptr.data_ptr());
    const auto* col = static_cast<const int32_t*>(cols.data_ptr());
    auto* out = static_cast<Word*>(dense.data_ptr());
    const int64_t grain = std::max<int64_t>(1, kGrain / row_len);
    torch::stable::parallel_for(0, dense.size(0), grain, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        Word* row = out + n * row_len;
        std::fill_n(row, row_len, Word{0});
        const int64_t list = n / granularity, count = start[list + 1] - start[list];
        const Word* from = value + start[list] * granularity + n % granularity * count;
        for (int64_t e = 0; e < count; ++e) row[col[start[list] + e]] = from[e];
      }
    });
  }

  template <typename Word>
  static void gather(const Tensor& dense, const Tensor& indptr, const Tensor& cols, int64_t granularity,
                     Tensor& values) {
    const auto* in = static_cast<const Word*>(dense.data_ptr());
    const auto* start = static_cast<const int32_t*>(indptr.data_ptr());
    const auto* col = static_cast<const int32_t*>(cols.data_ptr());
    auto* value = static_cast<Word*>(values.data_ptr());
    const int64_t row_len = dense.size(1);
    const int64_t per_row = values.numel() / dense.size(0) + 1;
    torch::stable::parallel_for(0, dense.size(0), kGrain / per_row + 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const Word* row = in + n * row_len;
        const int64_t list = n / granularity, count = start[list + 1] - start[list];
        Word* to = value + start[list] * granularity + n % granularity * count;
        for (int64_t e = 0; e < count; ++e) to[e] = row[col[start[list] + e]];
      }
    });
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) {
  m.impl("unpack", TORCH_BOX(&unpack_op::unpack<CpuUnpack>));
  m.impl("gather", TORCH_BOX(&unpack_op::gather<CpuUnpack>));
}

}  // namespace fedsparse
