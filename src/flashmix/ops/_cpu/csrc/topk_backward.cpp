// The backward of exact top-k attention, O(N k): first each query gathers from the keys it kept,
// then each key gathers from the queries that kept it, in their order, so that sums have the same
// bits however many threads there are.

#include <algorithm>
#include <cmath>
#include <memory>

#include "parallel.h"
#include "sequences.h"
#include "simd.h"
#include "slots.h"

namespace flashmix {
namespace {

template <class T>
struct TopKBackward {
  Shape shape;
  int64_t topk;
  const T *grad, *q, *k, *v;
  Strides at_grad, at_q, at_k, at_v;
  const int32_t* index;  // [P, N, k], -1 where fewer were kept
  const T* weights;      // [P, N, k]
  T *grad_q, *grad_k, *grad_v;  // [P, N, dh]

  void run() const {
    int64_t n = shape.tokens, pairs = n * topk, sequences = shape.sequences();
    std::unique_ptr<T[]> slopes(new T[sequences * pairs]);
    std::unique_ptr<int32_t[]> users(new int32_t[sequences * pairs]);
    std::unique_ptr<int64_t[]> starts(new int64_t[sequences * (n + 1)]);
    parallel(sequences * n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to_query(i / n, i % n, slopes.get() + i * topk);
    });
    parallel(sequences, [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        sort_by_key(index + p * pairs, users.get() + p * pairs, starts.get() + p * (n + 1));
    });
    parallel(sequences * n, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t p = i / n, key = i % n;
        const int64_t* start = starts.get() + p * (n + 1) + key;
        to_key(p, key, users.get() + p * pairs + start[0], start[1] - start[0],
               slopes.get() + p * pairs);
      }
    });
  }

  // The gradient of query i, and into `slopes` [k] that of its scores.
  void to_query(int64_t p, int64_t i, T* slopes) const {
    int64_t row = p * shape.tokens + i, dh = shape.width;
    const int32_t* kept = index + row * topk;
    const T* share = weights + row * topk;
    int64_t count = 0;
    while (count < topk && kept[count] >= 0) ++count;
    const T* g = head(grad, at_grad, p, i);
    T mean = 0, scale = T(1) / std::sqrt(T(dh));
    for (int64_t j = 0; j < count; ++j) {
      slopes[j] = dot(g, head(v, at_v, p, kept[j]), dh);
      mean += share[j] * slopes[j];
    }
    for (int64_t j = 0; j < count; ++j) slopes[j] = share[j] * (slopes[j] - mean) * scale;
    weighted_sum(grad_q + row * dh, count, slopes,
                 [&](int64_t j) { return head(k, at_k, p, kept[j]); }, dh);
  }

  // Lists, for each key, the places [N, k] that name it, in order.
  void sort_by_key(const int32_t* named, int32_t* users, int64_t* starts) const {
    int64_t n = shape.tokens;
    std::fill_n(starts, n + 1, 0);
    for (int64_t i = 0; i < n * topk; ++i)
      if (named[i] >= 0) ++starts[named[i] + 1];
    for (int64_t j = 0; j < n; ++j) starts[j + 1] += starts[j];
    // Each start moves on as its list fills, to where the next one began.
    for (int64_t i = 0; i < n * topk; ++i)
      if (named[i] >= 0) users[starts[named[i]]++] = int32_t(i);
    for (int64_t j = n; j > 0; --j) starts[j] = starts[j - 1];
    starts[0] = 0;
  }

  void to_key(int64_t p, int64_t key, const int32_t* users, int64_t count, const T* slopes) const {
    int64_t row = p * shape.tokens + key, dh = shape.width;
    T* factors = scratch<T>(2 * count + 1);
    for (int64_t i = 0; i < count; ++i) {
      factors[i] = weights[p * shape.tokens * topk + users[i]];
      factors[count + i] = slopes[users[i]];
    }
    weighted_sum(grad_v + row * dh, count, factors,
                 [&](int64_t i) { return head(grad, at_grad, p, users[i] / topk); }, dh);
    weighted_sum(grad_k + row * dh, count, factors + count,
                 [&](int64_t i) { return head(q, at_q, p, users[i] / topk); }, dh);
  }

  const T* head(const T* x, const Strides& at, int64_t p, int64_t i) const {
    return x + p / shape.heads * at.batch + p % shape.heads * at.head + i * at.token;
  }
};

template <class T>
int topk_backward(const Shape& shape, int64_t topk, const T* grad, const T* q, const T* k,
                  const T* v, const Strides* at, const int32_t* index, const T* weights,
                  T* grad_q, T* grad_k, T* grad_v) {
  return guarded([&] {
    TopKBackward<T>{shape, topk,  grad,    q,      k,      v,     at[0], at[1],
                    at[2], at[3], index,   weights, grad_q, grad_k, grad_v}
        .run();
  });
}

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int topk_backward_f32(const flashmix::Shape* shape, int64_t topk, const float* grad,
                                 const float* q, const float* k, const float* v,
                                 const flashmix::Strides* at, const int32_t* index,
                                 const float* weights, float* grad_q, float* grad_k,
                                 float* grad_v) {
  return flashmix::topk_backward(*shape, topk, grad, q, k, v, at, index, weights, grad_q, grad_k,
                                 grad_v);
}

FLASHMIX_EXPORT int topk_backward_f64(const flashmix::Shape* shape, int64_t topk, const double* grad,
                                 const double* q, const double* k, const double* v,
                                 const flashmix::Strides* at, const int32_t* index,
                                 const double* weights, double* grad_q, double* grad_k,
                                 double* grad_v) {
  return flashmix::topk_backward(*shape, topk, grad, q, k, v, at, index, weights, grad_q, grad_k,
                                 grad_v);
}

FLASHMIX_SLOTS(topk_backward_f32)
FLASHMIX_SLOTS(topk_backward_f64)
