#include "rows.h"

namespace fedsparse {
namespace {

// Strips below which a second thread does not pay.
constexpr int64_t kStripGrain = 8;

// Positions, in its row, of the entries that the table does not drop.
std::vector<int32_t> kept_entries(const Index& index, const std::vector<int32_t>& table, int64_t row) {
  std::vector<int32_t> kept;
  const int32_t* const cols = index.cols(row);
  for (int32_t e = 0; e < index.count(row); ++e)
    if (table[cols[e]] >= 0) kept.push_back(e);
  return kept;
}

template <typename T>
Tensor empty_words(const Tensor& like, int64_t count) {
  return torch::stable::new_zeros(like, {count * static_cast<int64_t>(sizeof(T) / sizeof(int32_t))});
}

// Calls body(weight, place in the packed entries) for every weight.
template <typename Body>
void each_weight(const Index& index, int64_t rows, const Body& body) {
  for (int64_t row = 0; row < index.rows; ++row) {
    const int64_t r = row % rows, first = index.first(row), count = index.count(row);
    const int64_t quad = index.first(row - r) + r / kQuad * kQuad * count + r % kQuad;
    for (int64_t e = 0; e < count; ++e) body(first + e, quad + e * kQuad);
  }
}

}  // namespace

template <typename T>
PackedStrips<T>::PackedStrips(const Index& index, const T* values, const std::vector<int32_t>& table)
    : rows_(index.strip) {
  const int64_t strips = index.rows / rows_;
  starts_ = torch::stable::new_zeros(index.owner[0], {strips + 1});
  offsets_ = torch::stable::new_empty(index.owner[0], {index.nnz / rows_});
  packed_ = empty_words<T>(index.owner[0], index.nnz);
  int32_t* const starts = out_ptr<int32_t>(starts_);
  int32_t* const offsets = out_ptr<int32_t>(offsets_);
  for (int64_t s = 0; s < strips; ++s) {
    starts[s + 1] = starts[s];
    const int32_t *col = index.cols(s * rows_), *end = col + index.count(s * rows_);
    for (; col < end; ++col)
      if (const int32_t offset = table[*col]; offset >= 0) offsets[starts[s + 1]++] = offset;
  }
  if (values == nullptr) return;
  torch::stable::parallel_for(0, strips, kStripGrain, [&](int64_t begin, int64_t end) {
    for (int64_t s = begin; s < end; ++s) {
      const std::vector<int32_t> kept = kept_entries(index, table, s * rows_);
      T* const strip = packed() + starts[s] * rows_;
      for (int64_t r = 0; r < rows_; ++r) {
        const int64_t first = index.first(s * rows_ + r);
        T* const quad = strip + r / kQuad * kQuad * static_cast<int64_t>(kept.size()) + r % kQuad;
        for (size_t e = 0; e < kept.size(); ++e) {
          const int64_t j = first + kept[e];
          quad[e * kQuad] = values[index.perm ? index.perm[j] : j];
        }
      }
    }
  });
}

template <typename T>
void PackedStrips<T>::unpack(const Index& index, T* gradient) const {
  const T* const from = packed();
  each_weight(index, rows_, [&](int64_t j, int64_t place) { gradient[j] = from[place]; });
}

template <typename T>
void PackedStrips<T>::pack(const Index& index, const T* gradient) const {
  T* const to = packed();
  each_weight(index, rows_, [&](int64_t j, int64_t place) { to[place] = gradient[j]; });
}

template class PackedStrips<float>;
template class PackedStrips<double>;

}  // namespace fedsparse
