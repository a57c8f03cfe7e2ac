// Sliding-window attention, forward and backward, in O(N * window).
//
// The lanes of two vectors are a block of queries; keys pass as rows, broadcast from where they
// stand, so that neither keys nor values are packed and the softmax of a query stays in its lane.
// The backward visits every pair twice: with queries in the lanes for the gradient of q, with keys
// in them for those of k and v. So every sum has one owner, and the same bits for any threads.
//
// Sequences are [P, N, dh], real tokens first. Query i sees keys i - before .. i + after.

#include <algorithm>
#include <cmath>

#include "gemm.h"
#include "heads.h"
#include "parallel.h"

namespace flashmix {
namespace {

template <class T>
struct Local {
  Shape shape;  // with lengths, and without order: the tokens stand packed
  int64_t before, after;
  const T *q, *k, *v, *grad;
  Strides at_q, at_k, at_v, at_grad;
  T* y;  // [P, N, dh]
  T* logarithm;  // of each query's sum of exponentials, [P, N]; null to keep none
  T *grad_q = nullptr, *grad_k = nullptr, *grad_v = nullptr;
  T* mean = nullptr;  // of each query's slopes, [P, N]: what its softmax takes from all of them

  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int64_t W = L::W, P = PANEL<T>;

  int64_t length(int64_t p) const { return shape.lengths ? shape.lengths[p / shape.heads] : shape.tokens; }
  const T* at(const T* x, const Strides& s, int64_t p, int64_t i) const {
    return x + p / shape.heads * s.batch + p % shape.heads * s.head + i * s.token;
  }
  T* row(T* x, int64_t p, int64_t i) const { return x + (p * shape.tokens + i) * shape.width; }
  T scale() const { return T(1) / std::sqrt(T(shape.width)); }

  template <class Body>
  void blocks(const Body& body) const {
    int64_t each = (shape.tokens + P - 1) / P;
    parallel(shape.sequences() * each, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        if (i % each * P < length(i / each)) body(i / each, i % each * P);
    });
  }

  void forward() const {
    blocks([&](int64_t p, int64_t first) { attend(p, first); });
  }

  void backward() const {
    blocks([&](int64_t p, int64_t first) { to_queries(p, first); });
    blocks([&](int64_t p, int64_t first) { to_keys(p, first); });
  }

  // -infinity in scores [rows][P] where row first_row + r and lane first + l do not see each other:
  // row - lane must lie in -low .. high.
  static void hide(T* scores, int64_t rows, int64_t first_row, int64_t first, int64_t low,
                   int64_t high) {
    for (int64_t r = 0; r < rows; ++r) {
      int64_t offset = first_row + r - first;
      int64_t begin = std::max<int64_t>(0, offset - high), end = std::min(P, offset + low + 1);
      T* line = scores + r * P;
      if (begin > 0) std::fill(line, line + std::min(begin, P), T(-INFINITY));
      if (end < P) std::fill(line + std::max<int64_t>(end, 0), line + P, T(-INFINITY));
    }
  }

  void attend(int64_t p, int64_t first) const {
    int64_t dh = shape.width, n = length(p), count = std::min(P, n - first);
    int64_t low = std::max<int64_t>(0, first - before), high = std::min(n, first + P + after);
    T* panel = scratch<T>((2 * dh + high - low) * P);
    T *out = panel + dh * P, *scores = out + dh * P;
    pack_panel(panel, [&](int64_t j) { return at(q, at_q, p, first + j); }, count, dh, scale());
    products(scores, false, at(k, at_k, p, low), high - low, at_k.token, 1, panel, dh);
    hide(scores, high - low, low, first, before, after);
    V most[2] = {L::all(-INFINITY), L::all(-INFINITY)}, total[2] = {};
    for (int64_t j = 0; j < high - low; ++j)
      for (int h = 0; h < 2; ++h) {
        V x = L::load(scores + j * P + h * W);
        most[h] = (x > most[h]) | (x != x) ? x : most[h];
      }
    for (int64_t j = 0; j < high - low; ++j)
      for (int h = 0; h < 2; ++h) {
        V x = exponential<T>(L::load(scores + j * P + h * W) - most[h]);
        total[h] += x;
        L::store(scores + j * P + h * W, x);
      }
    products(out, false, at(v, at_v, p, low), dh, 1, at_v.token, scores, high - low);
    for (int64_t d = 0; d < dh; ++d)
      for (int h = 0; h < 2; ++h)
        L::store(out + d * P + h * W, L::load(out + d * P + h * W) / total[h]);
    unpack_panel(out, [&](int64_t j) { return row(y, p, first + j); }, count, dh);
    if (logarithm)
      for (int64_t i = 0; i < count; ++i)
        logarithm[p * shape.tokens + first + i] = most[i / W][i % W] + std::log(total[i / W][i % W]);
  }

  void to_queries(int64_t p, int64_t first) const {
    int64_t dh = shape.width, n = length(p), count = std::min(P, n - first);
    int64_t low = std::max<int64_t>(0, first - before), rows = std::min(n, first + P + after) - low;
    T* panel = scratch<T>((2 * dh + 2 * rows) * P);
    T *upstream = panel + dh * P, *scores = upstream + dh * P, *slopes = scores + rows * P;
    T shift[P] = {};
    std::copy_n(logarithm + p * shape.tokens + first, count, shift);
    pack_panel(panel, [&](int64_t j) { return at(q, at_q, p, first + j); }, count, dh, scale());
    pack_panel(upstream, [&](int64_t j) { return at(grad, at_grad, p, first + j); }, count, dh, T(1));
    products(scores, false, at(k, at_k, p, low), rows, at_k.token, 1, panel, dh);
    hide(scores, rows, low, first, before, after);
    products(slopes, false, at(v, at_v, p, low), rows, at_v.token, 1, upstream, dh);
    for (int64_t l = 0; l < P; l += W) {
      V total = {}, from = L::load(shift + l);
      for (int64_t j = 0; j < rows; ++j) {
        V share = exponential<T>(L::load(scores + j * P + l) - from);
        total += share * L::load(slopes + j * P + l);
        L::store(scores + j * P + l, share);
      }
      for (int64_t j = 0; j < rows; ++j) {
        V slope = L::load(slopes + j * P + l) - total;
        L::store(slopes + j * P + l, L::load(scores + j * P + l) * slope * scale());
      }
      L::store(shift + l, total);
    }
    std::copy_n(shift, count, mean + p * shape.tokens + first);
    products(panel, false, at(k, at_k, p, low), dh, 1, at_k.token, slopes, rows);
    unpack_panel(panel, [&](int64_t j) { return row(grad_q, p, first + j); }, count, dh);
  }

  void to_keys(int64_t p, int64_t first) const {
    int64_t dh = shape.width, n = length(p), count = std::min(P, n - first);
    int64_t low = std::max<int64_t>(0, first - after), rows = std::min(n, first + P + before) - low;
    T* keys = scratch<T>((2 * dh + 2 * rows) * P);
    T *values = keys + dh * P, *shares = values + dh * P, *slopes = shares + rows * P;
    pack_panel(keys, [&](int64_t j) { return at(k, at_k, p, first + j); }, count, dh, scale());
    pack_panel(values, [&](int64_t j) { return at(v, at_v, p, first + j); }, count, dh, T(1));
    products(shares, false, at(q, at_q, p, low), rows, at_q.token, 1, keys, dh);
    hide(shares, rows, low, first, after, before);
    products(slopes, false, at(grad, at_grad, p, low), rows, at_grad.token, 1, values, dh);
    for (int64_t i = 0; i < rows; ++i) {
      T shift = logarithm[p * shape.tokens + low + i], taken = mean[p * shape.tokens + low + i];
      for (int64_t l = 0; l < P; l += W) {
        V share = exponential<T>(L::load(shares + i * P + l) - shift);
        L::store(shares + i * P + l, share);
        L::store(slopes + i * P + l, share * (L::load(slopes + i * P + l) - taken) * scale());
      }
    }
    products(values, false, at(grad, at_grad, p, low), dh, 1, at_grad.token, shares, rows);
    unpack_panel(values, [&](int64_t j) { return row(grad_v, p, first + j); }, count, dh);
    products(keys, false, at(q, at_q, p, low), dh, 1, at_q.token, slopes, rows);
    unpack_panel(keys, [&](int64_t j) { return row(grad_k, p, first + j); }, count, dh);
  }

};

template <class T>
int local_forward(const Shape& shape, int64_t before, int64_t after, const T* q, const T* k,
                  const T* v, const Strides* at, T* y, T* logarithm) {
  return guarded([&] {
    Local<T> local{shape, before, after, q, k, v, nullptr, at[0], at[1], at[2], {}, y, logarithm};
    local.forward();
  });
}

template <class T>
int local_backward(const Shape& shape, int64_t before, int64_t after, const T* grad, const T* q,
                   const T* k, const T* v, const Strides* at, T* logarithm, T* grad_q, T* grad_k,
                   T* grad_v) {
  return guarded([&] {
    std::unique_ptr<T[]> mean(new T[shape.sequences() * shape.tokens]);
    Local<T> local{shape, before, after,   q,         k,      v,      grad,   at[1],
                   at[2], at[3],  at[0],   nullptr, logarithm, grad_q, grad_k, grad_v};
    local.mean = mean.get();
    local.backward();
  });
}

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int local_forward_f32(const flashmix::Shape* shape, int64_t before, int64_t after,
                                      const float* q, const float* k, const float* v,
                                      const flashmix::Strides* at, float* y, float* logarithm) {
  return flashmix::local_forward(*shape, before, after, q, k, v, at, y, logarithm);
}

FLASHMIX_EXPORT int local_forward_f64(const flashmix::Shape* shape, int64_t before, int64_t after,
                                      const double* q, const double* k, const double* v,
                                      const flashmix::Strides* at, double* y, double* logarithm) {
  return flashmix::local_forward(*shape, before, after, q, k, v, at, y, logarithm);
}

FLASHMIX_EXPORT int local_backward_f32(const flashmix::Shape* shape, int64_t before, int64_t after,
                                       const float* grad, const float* q, const float* k,
                                       const float* v, const flashmix::Strides* at,
                                       float* logarithm, float* grad_q, float* grad_k,
                                       float* grad_v) {
  return flashmix::local_backward(*shape, before, after, grad, q, k, v, at, logarithm, grad_q,
                                  grad_k, grad_v);
}

FLASHMIX_EXPORT int local_backward_f64(const flashmix::Shape* shape, int64_t before, int64_t after,
                                       const double* grad, const double* q, const double* k,
                                       const double* v, const flashmix::Strides* at,
                                       double* logarithm, double* grad_q,
                                       double* grad_k, double* grad_v) {
  return flashmix::local_backward(*shape, before, after, grad, q, k, v, at, logarithm, grad_q,
                                  grad_k, grad_v);
}
