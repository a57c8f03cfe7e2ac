// Attention of each query to a few runs of keys, forward and backward; a pattern names them.
//
// The lanes of two vectors are a panel of queries; keys pass as rows, broadcast from where they
// stand, so that neither keys nor values are packed and the softmax of a query stays in its lane.
// The backward visits every pair twice: with queries in the lanes for the gradient of q, with keys
// in them for those of k and v. So every sum has one owner, and the same bits for any threads.
//
// Sequences are [P, N, dh], real tokens first.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "gemm.h"
#include "heads.h"
#include "parallel.h"

namespace flashmix {

// Tokens first .. first + count.
struct Run {
  int64_t first, count;
};

// A pattern has, for a sequence p of n tokens in panels of at most `lanes` tokens:
//   int64_t panels(lanes)                  panels of a sequence
//   Run panel(i, lanes, n)                 the tokens of panel i; a count below one where none are
//   int64_t most_runs()                    a bound for the next two
//   int64_t keys(p, Run queries, n, Run* runs)     the runs of keys they see: how many
//   int64_t queries(p, Run keys, n, Run* runs)     the runs of queries that see them: how many
//   int64_t before, after                  query i sees only keys i - before .. i + after of these
template <class T, class Pattern>
struct Sparse {
  Shape shape;  // with lengths, and without order: the tokens stand packed
  Pattern pattern;
  const T *q, *k, *v, *grad;
  Strides at_q, at_k, at_v, at_grad;
  T* y;          // [P, N, dh]
  T* logarithm;  // of each query's sum of exponentials, [P, N]
  T *grad_q = nullptr, *grad_k = nullptr, *grad_v = nullptr;
  T* mean = nullptr;  // of each query's slopes, [P, N]: what its softmax takes from all of them

  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int64_t W = L::W, P = PANEL<T>;

  int64_t length(int64_t p) const {
    return shape.lengths ? shape.lengths[p / shape.heads] : shape.tokens;
  }
  const T* at(const T* x, const Strides& s, int64_t p, int64_t i) const {
    return x + p / shape.heads * s.batch + p % shape.heads * s.head + i * s.token;
  }
  T* row(T* x, int64_t p, int64_t i) const { return x + (p * shape.tokens + i) * shape.width; }
  T scale() const { return T(1) / std::sqrt(T(shape.width)); }

  template <class Body>
  void panels(const Body& body) const {
    int64_t each = pattern.panels(P);
    parallel(shape.sequences() * each, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        Run panel = pattern.panel(i % each, P, length(i / each));
        if (panel.count > 0) body(i / each, panel, scratch<Run>(pattern.most_runs()));
      }
    });
  }

  void forward() const {
    panels([&](int64_t p, Run panel, Run* runs) { attend(p, panel, runs); });
  }

  void backward() const {
    panels([&](int64_t p, Run panel, Run* runs) { to_queries(p, panel, runs); });
    panels([&](int64_t p, Run panel, Run* runs) { to_keys(p, panel, runs); });
  }

  // -infinity in scores [rows][P] where a row and a lane do not see each other: row - lane must lie
  // in -low .. high.
  static void hide(T* scores, Run rows, Run lanes, int64_t low, int64_t high) {
    for (int64_t r = 0; r < rows.count; ++r) {
      int64_t offset = rows.first + r - lanes.first;
      int64_t begin = std::max<int64_t>(0, offset - high), end = std::min(P, offset + low + 1);
      T* line = scores + r * P;
      if (begin > 0) std::fill(line, line + std::min(begin, P), T(-INFINITY));
      if (end < P) std::fill(line + std::max<int64_t>(end, 0), line + P, T(-INFINITY));
    }
  }

  static int64_t total(const Run* runs, int64_t count) {
    int64_t rows = 0;
    for (int64_t i = 0; i < count; ++i) rows += runs[i].count;
    return rows;
  }

  // use(run, its first row of the scores)
  template <class Use>
  static void each(const Run* runs, int64_t count, const Use& use) {
    int64_t row = 0;
    for (int64_t i = 0; i < count; row += runs[i++].count) use(runs[i], row);
  }

  void score(int64_t p, Run queries, const Run* runs, int64_t count, const T* panel,
             T* scores) const {
    each(runs, count, [&](Run run, int64_t row) {
      T* to = scores + row * P;
      products(to, false, at(k, at_k, p, run.first), run.count, at_k.token, 1, panel, shape.width);
      hide(to, run, queries, pattern.before, pattern.after);
    });
  }

  // out [dh][P] = the sum over rows of x by factors [rows][P].
  void gather(T* out, const T* x, const Strides& s, int64_t p, const Run* runs, int64_t count,
              const T* factors) const {
    each(runs, count, [&](Run run, int64_t row) {
      products(out, row > 0, at(x, s, p, run.first), shape.width, 1, s.token, factors + row * P,
               run.count);
    });
  }

  void attend(int64_t p, Run queries, Run* runs) const {
    int64_t dh = shape.width, count = pattern.keys(p, queries, length(p), runs);
    int64_t rows = total(runs, count);
    T* panel = scratch<T>((2 * dh + rows) * P);
    T *out = panel + dh * P, *scores = out + dh * P;
    pack_panel(panel, [&](int64_t j) { return at(q, at_q, p, queries.first + j); }, queries.count,
               dh, scale());
    score(p, queries, runs, count, panel, scores);
    V most[2] = {L::all(-INFINITY), L::all(-INFINITY)}, sum[2] = {};
    for (int64_t j = 0; j < rows; ++j)
      for (int h = 0; h < 2; ++h) {
        V x = L::load(scores + j * P + h * W);
        most[h] = (x > most[h]) | (x != x) ? x : most[h];
      }
    for (int64_t j = 0; j < rows; ++j)
      for (int h = 0; h < 2; ++h) {
        V x = exponential<T>(L::load(scores + j * P + h * W) - most[h]);
        sum[h] += x;
        L::store(scores + j * P + h * W, x);
      }
    gather(out, v, at_v, p, runs, count, scores);
    for (int64_t d = 0; d < dh; ++d)
      for (int h = 0; h < 2; ++h)
        L::store(out + d * P + h * W, L::load(out + d * P + h * W) / sum[h]);
    unpack_panel(out, [&](int64_t j) { return row(y, p, queries.first + j); }, queries.count, dh);
    for (int64_t i = 0; i < queries.count; ++i)
      logarithm[p * shape.tokens + queries.first + i] =
          most[i / W][i % W] + std::log(sum[i / W][i % W]);
  }

  void to_queries(int64_t p, Run queries, Run* runs) const {
    int64_t dh = shape.width, count = pattern.keys(p, queries, length(p), runs);
    int64_t rows = total(runs, count), first = queries.first;
    T* panel = scratch<T>((2 * dh + 2 * rows) * P);
    T *upstream = panel + dh * P, *scores = upstream + dh * P, *slopes = scores + rows * P;
    T shift[P] = {};
    std::copy_n(logarithm + p * shape.tokens + first, queries.count, shift);
    pack_panel(panel, [&](int64_t j) { return at(q, at_q, p, first + j); }, queries.count, dh,
               scale());
    pack_panel(upstream, [&](int64_t j) { return at(grad, at_grad, p, first + j); }, queries.count,
               dh, T(1));
    score(p, queries, runs, count, panel, scores);
    each(runs, count, [&](Run run, int64_t row) {
      products(slopes + row * P, false, at(v, at_v, p, run.first), run.count, at_v.token, 1,
               upstream, dh);
    });
    for (int64_t l = 0; l < P; l += W) {
      V taken = {}, from = L::load(shift + l);
      for (int64_t j = 0; j < rows; ++j) {
        V share = exponential<T>(L::load(scores + j * P + l) - from);
        taken += share * L::load(slopes + j * P + l);
        L::store(scores + j * P + l, share);
      }
      for (int64_t j = 0; j < rows; ++j) {
        V slope = L::load(slopes + j * P + l) - taken;
        L::store(slopes + j * P + l, L::load(scores + j * P + l) * slope * scale());
      }
      L::store(shift + l, taken);
    }
    std::copy_n(shift, queries.count, mean + p * shape.tokens + first);
    gather(panel, k, at_k, p, runs, count, slopes);
    unpack_panel(panel, [&](int64_t j) { return row(grad_q, p, first + j); }, queries.count, dh);
  }

  void to_keys(int64_t p, Run lanes, Run* runs) const {
    int64_t dh = shape.width, count = pattern.queries(p, lanes, length(p), runs), longest = 0;
    for (int64_t i = 0; i < count; ++i) longest = std::max(longest, runs[i].count);
    T* keys = scratch<T>((4 * dh + 2 * longest) * P);
    T *values = keys + dh * P, *to_k = values + dh * P, *to_v = to_k + dh * P;
    T *shares = to_v + dh * P, *slopes = shares + longest * P;
    pack_panel(keys, [&](int64_t j) { return at(k, at_k, p, lanes.first + j); }, lanes.count, dh,
               scale());
    pack_panel(values, [&](int64_t j) { return at(v, at_v, p, lanes.first + j); }, lanes.count, dh,
               T(1));
    std::fill_n(to_k, 2 * dh * P, T(0));
    each(runs, count, [&](Run run, int64_t) {
      products(shares, false, at(q, at_q, p, run.first), run.count, at_q.token, 1, keys, dh);
      hide(shares, run, lanes, pattern.after, pattern.before);
      products(slopes, false, at(grad, at_grad, p, run.first), run.count, at_grad.token, 1, values,
               dh);
      for (int64_t i = 0; i < run.count; ++i) {
        int64_t query = p * shape.tokens + run.first + i;
        for (int64_t l = 0; l < P; l += W) {
          V share = exponential<T>(L::load(shares + i * P + l) - logarithm[query]);
          L::store(shares + i * P + l, share);
          L::store(slopes + i * P + l,
                   share * (L::load(slopes + i * P + l) - mean[query]) * scale());
        }
      }
      products(to_v, true, at(grad, at_grad, p, run.first), dh, 1, at_grad.token, shares,
               run.count);
      products(to_k, true, at(q, at_q, p, run.first), dh, 1, at_q.token, slopes, run.count);
    });
    unpack_panel(to_v, [&](int64_t j) { return row(grad_v, p, lanes.first + j); }, lanes.count, dh);
    unpack_panel(to_k, [&](int64_t j) { return row(grad_k, p, lanes.first + j); }, lanes.count, dh);
  }
};

template <class T, class Pattern>
int sparse_forward(const Shape& shape, const Pattern& pattern, const T* q, const T* k, const T* v,
                   const Strides* at, T* y, T* logarithm) {
  return guarded([&] {
    Sparse<T, Pattern>{shape, pattern, q,     k,  v, nullptr,  at[0],
                       at[1], at[2],   {},    y,  logarithm}
        .forward();
  });
}

template <class T, class Pattern>
int sparse_backward(const Shape& shape, const Pattern& pattern, const T* grad, const T* q,
                    const T* k, const T* v, const Strides* at, T* logarithm, T* grad_q, T* grad_k,
                    T* grad_v) {
  return guarded([&] {
    std::unique_ptr<T[]> mean(new T[shape.sequences() * shape.tokens]);
    Sparse<T, Pattern>{shape, pattern, q,       k,         v,      grad,   at[1],  at[2],
                       at[3], at[0],   nullptr, logarithm, grad_q, grad_k, grad_v, mean.get()}
        .backward();
  });
}

}  // namespace flashmix
