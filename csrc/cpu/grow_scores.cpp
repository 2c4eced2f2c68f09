// grow_scores: the best inactive groups so far, and those of one tile of rows of the gradient, as one list.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <optional>
#include <tuple>
#include <type_traits>

#include "check.h"

namespace fedsparse {
namespace {

// A group with its score; `place` says where its gradients are: in the tile from 0 on, in the list below 0.
struct Candidate {
  double score;
  int64_t index, place;
};

// The `limit` best of all that were offered, ties to the first of them.  Offered in the order of their
// indices, they stay in it.  Memory is the caller's: `room(limit)` candidates and as many scores.
class Best {
 public:
  static int64_t room(int64_t limit) { return limit + limit / 2 + 64; }

  Best(Candidate* memory, double* scores, int64_t limit) : memory_(memory), scores_(scores), limit_(limit) {}

  // No score up to this can be among the best any more.
  double least() const { return least_; }

  void offer(const Candidate& candidate) {
    if (limit_ == 0 || candidate.score <= least_) return;
    memory_[size_++] = candidate;
    if (size_ == room(limit_)) shrink();
  }

  // Leaves no more than the best, and raises `least` where there are enough.
  void settle() {
    if (limit_ > 0 && size_ >= limit_) shrink();
  }

  int64_t size() const { return size_; }
  const Candidate& operator[](int64_t i) const { return memory_[i]; }

 private:
  void shrink() {
    std::transform(memory_, memory_ + size_, scores_, [](const Candidate& c) { return c.score; });
    std::nth_element(scores_, scores_ + limit_ - 1, scores_ + size_, std::greater<>{});
    least_ = scores_[limit_ - 1];
    int64_t ties = limit_ - std::count_if(scores_, scores_ + limit_, [&](double s) { return s > least_; });
    size_ = std::remove_if(
                memory_, memory_ + size_,
                [&](const Candidate& c) { return c.score < least_ || (c.score == least_ && ties-- <= 0); }) -
            memory_;
  }

  Candidate* memory_;
  double* scores_;
  int64_t limit_, size_ = 0;
  double least_ = -1.0;
};

// Rows first to first + rows of the gradient, and of the direction where there is one.
template <typename T>
struct Tile {
  const T *gradient, *direction;
  int64_t rows, width, first, granularity;

  // |gradient| summed over a group, -1 where no step down the gradient goes along the direction.
  double score(int64_t place) const {
    double sum = 0, along = 0;
    for (int64_t v = 0; v < granularity; ++v) {
      const T g = gradient[place + v * width];
      sum += std::abs(static_cast<double>(g));
      if (direction) along -= (g > 0 ? 1.0 : g < 0 ? -1.0 : 0.0) * direction[place + v * width];
    }
    return direction && !(along > 0) && sum == sum ? -1.0 : static_cast<double>(static_cast<T>(sum));
  }
};

// Columns that are looked at together: most have no gradient that is large enough.
constexpr int64_t kTogether = 16;

// Whether all these gradients are at most `least`; false where one is NaN.
template <typename T>
bool all_small(const T* gradient, T least) {
  typedef T Four __attribute__((vector_size(4 * sizeof(T))));
  typedef std::conditional_t<sizeof(T) == 4, int32_t, int64_t> Word;
  typedef Word Mask __attribute__((vector_size(4 * sizeof(T))));
  Mask small = ~Mask{};
  for (int64_t i = 0; i < kTogether; i += 4) {
    Four g;
    std::memcpy(&g, gradient + i, sizeof(g));
    small &= (g <= least) & (-g <= least);
  }
  return (small[0] & small[1] & small[2] & small[3]) != 0;
}

// Offers all inactive groups of the tile; false where a gradient is NaN.
template <typename T>
bool offer_tile(const Tile<T>& tile, const int32_t* starts, const int32_t* cols, Best& best) {
  const int64_t V = tile.granularity, first_index = tile.first / V * tile.width;
  for (int64_t row = 0; row < tile.rows; row += V) {
    const int64_t list = (tile.first + row) / V;
    const int32_t *active = cols + starts[list], *end = cols + starts[list + 1];
    for (int64_t col = 0, last; col < tile.width; col = last) {
      last = std::min(tile.width, col + kTogether);
      if (V == 1 && last - col == kTogether &&
          all_small(tile.gradient + row * tile.width + col, static_cast<T>(best.least())))
        continue;
      for (int64_t at = col; at < last; ++at) {
        const int64_t place = row * tile.width + at;
        if (V == 1 && std::abs(static_cast<double>(tile.gradient[place])) <= best.least()) continue;
        while (active != end && *active < at) ++active;
        if (active != end && *active == at) continue;
        const double score = tile.score(place);
        if (score != score) return false;
        if (score >= 0) best.offer({score, first_index + row / V * tile.width + at, place});
      }
    }
  }
  return true;
}

std::tuple<Tensor, Tensor, Tensor> grow_scores(Tensor tile_in, Tensor indptr_in, Tensor cols_in,
                                               int64_t first, int64_t granularity,
                                               std::optional<Tensor> direction_in, Tensor scores_in,
                                               Tensor indices_in, Tensor gradients_in) {
  const char* op = "grow_scores";
  const Tensor tile = checked_floats(op, "tile", tile_in, 2);
  const Tensor indptr = checked_indices(op, "indptr", indptr_in), cols = checked_columns(op, "cols", cols_in);
  const Tensor scores = checked_floats(op, "scores", scores_in, 1);
  const Tensor gradients = checked_floats(op, "gradients", gradients_in, 2);
  require_dims(op, "indices", indices_in, 1);
  const Tensor indices = torch::stable::contiguous(indices_in);
  std::optional<Tensor> direction;
  if (direction_in) {
    direction = checked_floats(op, "direction", *direction_in, 2);
    require_same_type(op, "direction", *direction, tile);
    require(direction->numel() == tile.numel(), op, ": direction must have the tile's shape.");
  }
  const int64_t count = scores.numel(), V = granularity, rows = tile.size(0);
  require(V > 0 && rows % V == 0 && first % V == 0, op, ": the tile must hold whole groups of rows.");
  require(first >= 0 && first + rows <= (indptr.numel() - 1) * V, op,
          ": the tile goes beyond the rows of the weight.");
  require(scores.scalar_type() == ScalarType::Double && gradients.scalar_type() == ScalarType::Float &&
              indices.scalar_type() == ScalarType::Long,
          op, ": scores must be float64, gradients float32, indices int64.");
  require(indices.numel() == count && gradients.size(0) == count && gradients.size(1) == V, op,
          ": indices and gradients must be as long as scores, and gradients ", V, " wide.");
  const Tensor new_scores = torch::stable::empty_like(scores),
               new_indices = torch::stable::empty_like(indices);
  const Tensor new_gradients = torch::stable::empty_like(gradients);
  const Tensor memory = torch::stable::new_empty(
      scores, {Best::room(count) * static_cast<int64_t>(sizeof(Candidate))}, ScalarType::Byte);
  const Tensor room = torch::stable::new_empty(scores, {Best::room(count)});
  by_type(tile, [&](auto zero) {
    using T = decltype(zero);
    const T* along = direction ? in_ptr<T>(*direction) : nullptr;
    const Tile<T> rows_of_tile{in_ptr<T>(tile), along, rows, tile.size(1), first, V};
    Best best(out_ptr<Candidate>(memory), out_ptr<double>(room), count);
    // In the order of their indices, wherever the tile stands among those that were looked at before.
    const auto offer_found = [&](bool before) {
      for (int64_t i = 0; i < count; ++i) {
        const double score = in_ptr<double>(scores)[i];
        const int64_t index = in_ptr<int64_t>(indices)[i];
        if (score >= 0 && (index < first / V * tile.size(1)) == before) best.offer({score, index, -1 - i});
      }
    };
    offer_found(true);
    best.settle();
    const bool finite = offer_tile(rows_of_tile, in_ptr<int32_t>(indptr), in_ptr<int32_t>(cols), best);
    offer_found(false);
    best.settle();
    for (int64_t i = 0; i < count; ++i) {
      const Candidate chosen = i < best.size() ? best[i] : Candidate{-1.0, 0, 0};
      out_ptr<double>(new_scores)[i] = finite ? chosen.score : std::numeric_limits<double>::quiet_NaN();
      out_ptr<int64_t>(new_indices)[i] = chosen.index;
      for (int64_t v = 0; v < V; ++v)
        out_ptr<float>(new_gradients)[i * V + v] =
            chosen.score < 0   ? 0.0F
            : chosen.place < 0 ? in_ptr<float>(gradients)[(-1 - chosen.place) * V + v]
                               : static_cast<float>(rows_of_tile.gradient[chosen.place + v * tile.size(1)]);
    }
  });
  return {new_scores, new_indices, new_gradients};
}

}  // namespace
}  // namespace fedsparse

STABLE_TORCH_LIBRARY_IMPL(fedsparse, CPU, m) { m.impl("grow_scores", TORCH_BOX(&fedsparse::grow_scores)); }
