// What every CUDA op needs around its launch: the tensor's device, its current stream, and checked errors.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

// Weak: the symbol is null under a torch without CUDA, where the library still loads and says so only when
// called.
extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream)
    __attribute__((weak));

namespace fedsparse {

inline void check_cuda(cudaError_t error, const char* what) {
  STD_TORCH_CHECK(error == cudaSuccess, "fedsparse: ", what, " failed: ", cudaGetErrorString(error));
}

// While it lives, launches go to the device of `tensor`, in the stream that is current there.
class LaunchScope {
 public:
  explicit LaunchScope(const torch::stable::Tensor& tensor) : guard_(tensor.get_device_index()) {
    STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream != nullptr,
                    "fedsparse: this torch has no CUDA support");
    // The runtime linked into this library keeps its own idea of the current device.
    check_cuda(cudaSetDevice(tensor.get_device_index()), "cudaSetDevice");
    void* stream = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }

  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_ = nullptr;
};

}  // namespace fedsparse
