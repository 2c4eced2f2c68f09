// unpack: dense[n, c] = values[j] where (n, c) is nonzero j of the topology, 0 elsewhere.  gather: its
// adjoint.
//
// Floor of unpack: one write of the dense weight and one read of values and cols. A block owns one tile of
// one row: it builds the tile in shared memory and writes it once, so that no separate zero fill passes over
// the weight.
#include "../unpack.h"
#include "launch.h"
#include "unpack_index.h"

namespace fedsparse {
namespace {

using torch::stable::Tensor;

constexpr int kGatherThreads = 256;

template <typename Word>
__global__ void __launch_bounds__(kUnpackThreads)
    unpack_kernel(const Word* __restrict__ values, const int32_t* __restrict__ indptr,
                  const int32_t* __restrict__ cols, int granularity, int row_len, bool aligned,
                  Word* __restrict__ dense) {
  __shared__ Vector16 tile[kUnpackTileBytes / sizeof(Vector16)];
  const TileSpan span = tile_span(static_cast<int>(blockIdx.x), row_len, kUnpackTile<Word>);
  const int thread = static_cast<int>(threadIdx.x);
  unpack_clear(tile, thread);
  __syncthreads();
  unpack_scatter<Word>(values, indptr, cols, granularity, span, reinterpret_cast<Word*>(tile), thread);
  __syncthreads();
  unpack_store<Word>(tile, span, row_len, aligned, dense, thread);
}

template <typename Word>
__global__ void __launch_bounds__(kGatherThreads)
    gather_kernel(const Word* __restrict__ dense, const int32_t* __restrict__ indptr,
                  const int32_t* __restrict__ cols, int granularity, int rows, int row_len, int nnz,
                  Word* __restrict__ values) {
  const int64_t j = static_cast<int64_t>(blockIdx.x) * kGatherThreads + threadIdx.x;
  if (j < nnz) gather_one<Word>(dense, indptr, cols, granularity, rows, row_len, static_cast<int>(j), values);
}

struct CudaUnpack {
  template <typename Word>
  static void unpack(const Tensor& values, const Tensor& indptr, const Tensor& cols, int64_t granularity,
                     int64_t row_len, Tensor& dense) {
    const LaunchScope scope(values);
    const int len = static_cast<int>(row_len);
    const int64_t blocks = dense.size(0) * tiles_per_row(len, kUnpackTile<Word>);
    STD_TORCH_CHECK(blocks <= std::numeric_limits<int32_t>::max(), "unpack: the dense weight is too large");
    unpack_kernel<Word><<<static_cast<unsigned>(blocks), kUnpackThreads, 0, scope.stream()>>>(
        static_cast<const Word*>(values.data_ptr()), static_cast<const int32_t*>(indptr.data_ptr()),
        static_cast<const int32_t*>(cols.data_ptr()), static_cast<int>(granularity), len,
        rows_aligned<Word>(len), static_cast<Word*>(dense.data_ptr()));
    check_cuda(cudaGetLastError(), "the launch of unpack");
  }

  template <typename Word>
  static void gather(const Tensor& dense, const Tensor& indptr, const Tensor& cols, int64_t granularity,
                     Tensor& values) {
    const LaunchScope scope(dense);
    const int64_t nnz = values.numel();
    const int64_t blocks = (nnz + kGatherThreads - 1) / kGatherThreads;
    gather_kernel<Word><<<static_cast<unsigned>(blocks), kGatherThreads, 0, scope.stream()>>>(
        static_cast<const Word*>(dense.data_ptr()), static_cast<const int32_t*>(indptr.data_ptr()),
        static_cast<const int32_t*>(cols.data_ptr()), static_cast<int>(granularity),
        static_cast<int>(dense.size(0)), static_cast<int>(dense.size(1)), static_cast<int>(nnz),
        static_cast<Word*>(values.data_ptr()));
    check_cuda(cudaGetLastError(), "the launch of gather");
  }
};

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CUDA, m) {
  m.impl("unpack", TORCH_BOX(&unpack_op::unpack<CudaUnpack>));
  m.impl("gather", TORCH_BOX(&unpack_op::gather<CudaUnpack>));
}

}  // namespace fedsparse
