// The sequences of a buffer of tokens: padded, [batch, tokens, ..], or packed one after another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "parallel.h"

namespace flashmix {

// [B, H, N, dh] in memory; dh is contiguous.
struct Strides {
  int64_t batch, head, token;
};

// The tokens of a call. With `mask` [batch, tokens], those where it is set are real. With `offsets`
// [batch + 1], sequence s is the tokens offsets[s] .. offsets[s + 1] of one row of `tokens`.
struct Shape {
  int64_t batch, heads, tokens, width;
  const bool* mask;
  const int32_t* offsets;

  int64_t sequences() const { return batch * heads; }
  // A bound of the sequences' lengths.
  int64_t longest() const {
    int64_t most = offsets ? 0 : tokens;
    for (int64_t s = 0; offsets && s < batch; ++s)
      most = std::max<int64_t>(most, offsets[s + 1] - offsets[s]);
    return most;
  }
  int64_t rows() const { return offsets ? heads : batch * heads; }  // of `tokens` tokens
};

// `length` tokens of row `row` of the batch, from `first` on, or at `position` where they do not
// stand side by side.
struct Sequence {
  int64_t row, first, length;
  const int32_t* position;

  int64_t at(int64_t rank) const { return position ? position[rank] : first + rank; }
};

// The real tokens of one head of a sequence, by their rank among them.
template <class T>
struct Rows {
  T* base;
  int64_t stride;
  const int32_t* position;

  Rows(const Sequence& sequence, T* x, const Strides& at, int64_t head = 0)
      : base(x + sequence.row * at.batch + head * at.head +
             (sequence.position ? 0 : sequence.first * at.token)),
        stride(at.token),
        position(sequence.position) {}
  T* operator()(int64_t rank) const { return base + (position ? position[rank] : rank) * stride; }
};

class Sequences {
 public:
  explicit Sequences(const Shape& shape) : tokens(shape.tokens) {
    bool padded = shape.mask && !shape.offsets;
    if (padded) positions.resize(shape.batch * tokens);
    for (int64_t s = 0; s < shape.batch; ++s) {
      if (shape.offsets)
        all.push_back({0, shape.offsets[s], shape.offsets[s + 1] - shape.offsets[s], nullptr});
      else if (shape.mask)
        all.push_back(masked(s, shape.mask + s * tokens, positions.data() + s * tokens));
      else
        all.push_back({s, 0, tokens, nullptr});
      holes = holes || all.back().position;
      padding = padding || (padded && all.back().length < tokens);
    }
  }

  int64_t size() const { return int64_t(all.size()); }
  const Sequence& operator[](int64_t s) const { return all[s]; }
  // Where the token of a rank stands in [.., heads, tokens], for p = sequence * heads + head.
  int64_t place(int64_t p, int64_t heads, int64_t rank) const {
    const Sequence& one = all[p / heads];
    return (one.row * heads + p % heads) * tokens + one.at(rank);
  }
  bool any_holes() const { return holes; }
  bool any_padding() const { return padding; }

  // use(token) for each token of the sequence's row that is padding.
  template <class Use>
  void each_padding(int64_t s, const Use& use) const {
    if (!padding) return;
    int64_t next = 0;
    for (int64_t rank = 0; rank < all[s].length; ++rank) {
      if (!all[s].position && rank) {
        next = all[s].first + all[s].length;
        break;
      }
      for (int64_t at = all[s].at(rank); next < at; ++next) use(next);
      ++next;
    }
    for (; next < tokens; ++next) use(next);
  }

 private:
  int64_t tokens;
  std::vector<Sequence> all;
  std::vector<int32_t> positions;
  bool holes = false, padding = false;

  Sequence masked(int64_t row, const bool* mask, int32_t* position) const {
    int64_t length = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      position[length] = int32_t(t);
      length += mask[t];
    }
    int64_t first = length ? position[0] : 0;
    bool together = !length || position[length - 1] - first == length - 1;
    return {row, first, length, together ? nullptr : position};
  }
};

// Pieces of work and what each costs, so that threads get equal shares of the cost.
class Shares {
 public:
  void add(int64_t cost) { starts.push_back(starts.back() + std::max<int64_t>(cost, 1)); }

  template <class Each>
  void run(const Each& each) const {
    parallel(starts.back(), [&](int64_t begin, int64_t end) {
      auto first = std::lower_bound(starts.begin(), starts.end(), begin);
      for (auto at = first; *at < end; ++at) each(int64_t(at - starts.begin()));
    });
  }

 private:
  std::vector<int64_t> starts{0};
};

}  // namespace flashmix
