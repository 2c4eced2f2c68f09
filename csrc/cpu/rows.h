// The rows of a weight as the kernels of one pass read them: strips where rows share their columns (see
// strips.h), else single taps.
#pragma once

#include "lists.h"
#include "strips.h"

namespace fedsparse {

// Entries of all strips; those whose table entry is negative are left out.
template <typename T>
class PackedStrips {
 public:
  // Weights are packed where values are given, else zeros for a gradient.
  PackedStrips(const Index& index, const T* values, const std::vector<int32_t>& table);

  Strips view() const { return {rows_, in_ptr<int32_t>(starts_), in_ptr<int32_t>(offsets_)}; }
  T* packed() const { return out_ptr<T>(packed_); }
  // gradient[j] = the packed entry of weight j, and the way back; only where nothing was left out.
  void unpack(const Index& index, T* gradient) const;
  void pack(const Index& index, const T* gradient) const;

 private:
  int64_t rows_;
  Tensor starts_, offsets_, packed_;
};

// Forward, or gradient to the input.
template <typename T>
class GatherRows {
 public:
  // table[col] is the offset in elements of the input line that column `col` reads.
  GatherRows(const Index& index, const T* values, const std::vector<int32_t>& table,
             const ChannelBlocks& plan) {
    if (index.strip > 1)
      strips_.emplace(index, values, table);
    else
      taps_.emplace(tap_lists<T>(index, values, table, plan));
  }

  // The bounds must be those of `over_rows` or `equal_work`.
  void run(const Gather<T>& g, int64_t begin, int64_t end) const {
    if (!strips_) return kernels<T>().gather(g, {taps_->blocks(), taps_->data()}, begin, end);
    const Strips strips = strips_->view();
    strip_kernels<T>().gather(g, strips, strips_->packed(), begin / strips.rows, end / strips.rows);
  }

 private:
  std::optional<TapLists<T>> taps_;
  std::optional<PackedStrips<T>> strips_;
};

// Gradient at the active weights.
template <typename T>
class SampleRows {
 public:
  // Adds to `gradient` [nnz].
  SampleRows(const Index& index, const std::vector<int32_t>& table, const ChannelBlocks& plan, T* gradient)
      : index_(index), gradient_(gradient) {
    if (index.strip > 1) {
      strips_.emplace(index, nullptr, table);
      strips_->pack(index, gradient);
    } else {
      single(table, plan);
    }
  }

  void add(const Sample<T>& s, int64_t part, int64_t begin, int64_t end) const {
    if (!strips_) {
      T* const scratch = out_ptr<T>(scratch_) + part * scratch_lines_ * kLanes<T>;
      kernels<T>().sample(s, {offsets_->blocks(), offsets_->data(), scratch, scratch_lines_}, gradient_,
                          begin, end);
      return;
    }
    const Strips strips = strips_->view();
    strip_kernels<T>().sample(s, strips, strips_->packed(), begin / strips.rows, end / strips.rows);
  }

  // After the last `add`.
  void finish() const {
    if (strips_) strips_->unpack(index_, gradient_);
  }

 private:
  // Where the kernels keep one line of partial sums for each active weight, one piece a thread.
  void single(const std::vector<int32_t>& table, const ChannelBlocks& plan) {
    constexpr int64_t kLines = 4096;  // 256 KiB: stays in the second-level cache
    offsets_.emplace(offset_lists(index_, table, plan));
    scratch_lines_ = std::min(kLines, index_.nnz);
    for (int64_t row = 0; row < index_.rows; ++row)
      scratch_lines_ = std::max(scratch_lines_, index_.count(row));
    const int64_t words = kLanes<T> * static_cast<int64_t>(sizeof(T) / sizeof(int32_t));
    scratch_ = torch::stable::new_empty(index_.owner[0],
                                        {torch::stable::get_num_threads() * scratch_lines_ * words});
  }

  const Index& index_;
  T* gradient_;
  std::optional<OffsetLists> offsets_;
  std::optional<PackedStrips<T>> strips_;
  int64_t scratch_lines_ = 0;
  Tensor scratch_;
};

}  // namespace fedsparse
