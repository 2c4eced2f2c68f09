// An allocator that counts: how many bytes of CPU tensors are alive, the most there were since the last
// reset, and the largest single one since the last reset of that.
//
// torch has such a counter for CUDA but none for the CPU. Installed on demand, it replaces torch's CPU
// allocator for all later allocations; tensors made before keep their own deleter and are not counted. A
// block carries its size in a header of one cache line, so that data stay 64-byte aligned and freeing needs
// no table.

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <atomic>
#include <cstdint>
#include <cstring>

namespace {

constexpr size_t kHeader = 64;

std::atomic<int64_t> live{0};
std::atomic<int64_t> peak{0};
std::atomic<int64_t> largest{0};

void raise(std::atomic<int64_t>& highest, int64_t now) {
  int64_t seen = highest.load(std::memory_order_relaxed);
  while (now > seen && !highest.compare_exchange_weak(seen, now, std::memory_order_relaxed)) {
  }
}

void release(void* data) {
  if (data == nullptr) return;
  char* block = static_cast<char*>(data) - kHeader;
  int64_t size = 0;
  std::memcpy(&size, block, sizeof size);
  live.fetch_sub(size, std::memory_order_relaxed);
  c10::free_cpu(block);
}

struct CountingAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t size) override {
    if (size == 0) return {nullptr, nullptr, &release, c10::Device(c10::DeviceType::CPU)};
    char* block = static_cast<char*>(c10::alloc_cpu(size + kHeader));
    const auto counted = static_cast<int64_t>(size);
    std::memcpy(block, &counted, sizeof counted);
    raise(peak, live.fetch_add(counted, std::memory_order_relaxed) + counted);
    raise(largest, counted);
    char* data = block + kHeader;
    return {data, data, &release, c10::Device(c10::DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &release; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
};

CountingAllocator counting;

}  // namespace

extern "C" {

// The highest priority wins; 100 is above torch's own and any profiler's.
void fedsparse_meter_install() { c10::SetCPUAllocator(&counting, 100); }
int64_t fedsparse_meter_live() { return live.load(); }
int64_t fedsparse_meter_peak() { return peak.load(); }
int64_t fedsparse_meter_largest() { return largest.load(); }
void fedsparse_meter_reset() { peak.store(live.load()); }
void fedsparse_meter_reset_largest() { largest.store(0); }
}
