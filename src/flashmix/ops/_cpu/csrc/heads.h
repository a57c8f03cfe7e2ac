// Where the rows of attention's tensors stand.
#pragma once

#include <cstdint>

namespace flashmix {

// [B, H, N, dh] in memory; dh is contiguous.
struct Strides {
  int64_t batch, head, token;
};

// The sequences of a call. With `order`, sequence b has length[b] real tokens at the positions
// order[b * tokens ..]; without it, all of them.
struct Shape {
  int64_t batch, heads, tokens, width;
  const int64_t* order;
  const int64_t* lengths;

  int64_t sequences() const { return batch * heads; }
  int64_t length(int64_t p) const { return order ? lengths[p / heads] : tokens; }
  int64_t position(int64_t p, int64_t rank) const {
    return order ? order[p / heads * tokens + rank] : rank;
  }
};

// The real rows of one head, by their rank among them.
template <class T>
struct Rows {
  T* base;
  int64_t stride;
  const int64_t* order;

  Rows(const Shape& shape, T* x, const Strides& at, int64_t p)
      : base(x + p / shape.heads * at.batch + p % shape.heads * at.head),
        stride(at.token),
        order(shape.order ? shape.order + p / shape.heads * shape.tokens : nullptr) {}
  T* operator()(int64_t rank) const { return base + (order ? order[rank] : rank) * stride; }
};

}  // namespace flashmix
