// Attention of each query to a few runs of keys, forward and backward; a pattern names them.
//
// The lanes of two vectors are a panel of queries; keys pass as rows, broadcast from where they
// stand, so that neither keys nor values are packed and the softmax of a query stays in its lane.
// The backward visits every pair twice: with queries in the lanes for the gradient of q, with keys
// in them for those of k and v. So every sum has one owner, and the same bits for any threads.
//
// Keys must stand side by side: of sequences with holes, the real tokens are copied first.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>

#include "gemm.h"
#include "parallel.h"
#include "sequences.h"

namespace flashmix {

// Tokens first .. first + count.
struct Run {
  int64_t first, count;
};

// Real tokens [.., dh] side by side, by their rank: as they stand, or copies of them.
template <class T>
struct Beside {
  const Sequences* sequences = nullptr;
  const T* x = nullptr;
  Strides at{};
  int64_t heads = 1;
  std::unique_ptr<T[]> copies;

  Beside() = default;
  Beside(const Shape& shape, const Sequences& sequences, const T* x, const Strides& at)
      : sequences(&sequences), x(x), at(at), heads(shape.heads) {
    if (!sequences.any_holes()) return;
    int64_t n = shape.tokens, dh = shape.width;
    copies.reset(new T[shape.sequences() * n * dh]);
    parallel(shape.sequences(), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p) {
        const Sequence& one = sequences[p / heads];
        Rows<const T> from(one, x, at, p % heads);
        for (int64_t i = 0; i < one.length; ++i)
          std::copy_n(from(i), dh, copies.get() + (p * n + i) * dh);
      }
    });
    this->x = copies.get();
    this->at = {heads * n * dh, n * dh, dh};
  }

  const T* row(int64_t p, int64_t rank) const {
    const Sequence& one = (*sequences)[p / heads];
    return x + one.row * at.batch + p % heads * at.head +
           ((copies ? 0 : one.first) + rank) * at.token;
  }
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
  const Shape& shape;
  const Sequences& sequences;
  Pattern pattern;
  Beside<T> q, k, v, grad;
  T* y;          // [P, N, dh]
  T* logarithm;  // of each query's sum of exponentials, [P, N]
  T *grad_q = nullptr, *grad_k = nullptr, *grad_v = nullptr;
  T* mean = nullptr;  // of each query's slopes, [P, N]: what its softmax takes from all of them

  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int64_t W = L::W, P = PANEL<T>;

  int64_t length(int64_t p) const { return sequences[p / shape.heads].length; }
  int64_t place(int64_t p, int64_t i) const { return sequences.place(p, shape.heads, i); }
  T* row(T* x, int64_t p, int64_t i) const {
    return x + place(p, i) * shape.width;
  }
  T scale() const { return T(1) / std::sqrt(T(shape.width)); }

  template <class Body>
  void panels(const Body& body) const {
    int64_t each = pattern.panels(P);
    Shares shares;
    std::vector<int64_t> real;
    for (int64_t i = 0; i < shape.sequences() * each; ++i) {
      int64_t n = length(i / each);
      Run panel = pattern.panel(i % each, P, n);
      if (panel.count <= 0) continue;
      real.push_back(i);
      shares.add(P + std::min(n, pattern.before + pattern.after + P));
    }
    shares.run([&](int64_t i) {
      int64_t p = real[i] / each;
      body(p, pattern.panel(real[i] % each, P, length(p)), scratch<Run>(pattern.most_runs()));
    });
  }

  // Zeros at the padding of results [P, N, width].
  void zeros(std::initializer_list<T*> results, int64_t width) const {
    if (!sequences.any_padding()) return;
    parallel(shape.sequences(), [&](int64_t begin, int64_t end) {
      for (int64_t p = begin; p < end; ++p)
        sequences.each_padding(p / shape.heads, [&](int64_t t) {
          for (T* x : results) std::fill_n(x + (p * shape.tokens + t) * width, width, T(0));
        });
    });
  }

  void forward() const {
    zeros({y}, shape.width);
    zeros({logarithm}, 1);
    panels([&](int64_t p, Run panel, Run* runs) { attend(p, panel, runs); });
  }

  void backward() const {
    zeros({grad_q, grad_k, grad_v}, shape.width);
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
      products(to, false, k.row(p, run.first), run.count, k.at.token, 1, panel, shape.width);
      hide(to, run, queries, pattern.before, pattern.after);
    });
  }

  // out [dh][P] = the sum over rows of x by factors [rows][P].
  void gather(T* out, const Beside<T>& x, int64_t p, const Run* runs, int64_t count,
              const T* factors) const {
    each(runs, count, [&](Run run, int64_t row) {
      products(out, row > 0, x.row(p, run.first), shape.width, 1, x.at.token, factors + row * P,
               run.count);
    });
  }

  void attend(int64_t p, Run queries, Run* runs) const {
    int64_t dh = shape.width, count = pattern.keys(p, queries, length(p), runs);
    int64_t rows = total(runs, count);
    T* panel = scratch<T>((2 * dh + rows) * P);
    T *out = panel + dh * P, *scores = out + dh * P;
    pack_panel(panel, [&](int64_t j) { return q.row(p, queries.first + j); }, queries.count,
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
    gather(out, v, p, runs, count, scores);
    for (int64_t d = 0; d < dh; ++d)
      for (int h = 0; h < 2; ++h)
        L::store(out + d * P + h * W, L::load(out + d * P + h * W) / sum[h]);
    unpack_panel(out, [&](int64_t j) { return row(y, p, queries.first + j); }, queries.count, dh);
    for (int64_t i = 0; i < queries.count; ++i)
      logarithm[place(p, queries.first + i)] =
          most[i / W][i % W] + std::log(sum[i / W][i % W]);
  }

  void to_queries(int64_t p, Run queries, Run* runs) const {
    int64_t dh = shape.width, count = pattern.keys(p, queries, length(p), runs);
    int64_t rows = total(runs, count), first = queries.first;
    T* panel = scratch<T>((2 * dh + 2 * rows) * P);
    T *upstream = panel + dh * P, *scores = upstream + dh * P, *slopes = scores + rows * P;
    T shift[P] = {};
    for (int64_t i = 0; i < queries.count; ++i) shift[i] = logarithm[place(p, first + i)];
    pack_panel(panel, [&](int64_t j) { return q.row(p, first + j); }, queries.count, dh,
               scale());
    pack_panel(upstream, [&](int64_t j) { return grad.row(p, first + j); }, queries.count,
               dh, T(1));
    score(p, queries, runs, count, panel, scores);
    each(runs, count, [&](Run run, int64_t row) {
      products(slopes + row * P, false, v.row(p, run.first), run.count, v.at.token, 1,
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
    for (int64_t i = 0; i < queries.count; ++i) mean[place(p, first + i)] = shift[i];
    gather(panel, k, p, runs, count, slopes);
    unpack_panel(panel, [&](int64_t j) { return row(grad_q, p, first + j); }, queries.count, dh);
  }

  void to_keys(int64_t p, Run lanes, Run* runs) const {
    int64_t dh = shape.width, count = pattern.queries(p, lanes, length(p), runs), longest = 0;
    for (int64_t i = 0; i < count; ++i) longest = std::max(longest, runs[i].count);
    T* keys = scratch<T>((4 * dh + 2 * longest) * P);
    T *values = keys + dh * P, *to_k = values + dh * P, *to_v = to_k + dh * P;
    T *shares = to_v + dh * P, *slopes = shares + longest * P;
    pack_panel(keys, [&](int64_t j) { return k.row(p, lanes.first + j); }, lanes.count, dh,
               scale());
    pack_panel(values, [&](int64_t j) { return v.row(p, lanes.first + j); }, lanes.count, dh,
               T(1));
    std::fill_n(to_k, 2 * dh * P, T(0));
    each(runs, count, [&](Run run, int64_t) {
      products(shares, false, q.row(p, run.first), run.count, q.at.token, 1, keys, dh);
      hide(shares, run, lanes, pattern.after, pattern.before);
      products(slopes, false, grad.row(p, run.first), run.count, grad.at.token, 1, values,
               dh);
      for (int64_t i = 0; i < run.count; ++i) {
        int64_t query = place(p, run.first + i);
        for (int64_t l = 0; l < P; l += W) {
          V share = exponential<T>(L::load(shares + i * P + l) - logarithm[query]);
          L::store(shares + i * P + l, share);
          L::store(slopes + i * P + l,
                   share * (L::load(slopes + i * P + l) - mean[query]) * scale());
        }
      }
      products(to_v, true, grad.row(p, run.first), dh, 1, grad.at.token, shares,
               run.count);
      products(to_k, true, q.row(p, run.first), dh, 1, q.at.token, slopes, run.count);
    });
    unpack_panel(to_v, [&](int64_t j) { return row(grad_v, p, lanes.first + j); }, lanes.count, dh);
    unpack_panel(to_k, [&](int64_t j) { return row(grad_k, p, lanes.first + j); }, lanes.count, dh);
  }
};

template <class T, class Pattern>
int sparse_forward(const Shape& shape, const Pattern& pattern, const T* q, const T* k, const T* v,
                   const Strides* at, T* y, T* logarithm) {
  return guarded([&] {
    Sequences all(shape);
    Sparse<T, Pattern>{shape,
                       all,
                       pattern,
                       {shape, all, q, at[0]},
                       {shape, all, k, at[1]},
                       {shape, all, v, at[2]},
                       {},
                       y,
                       logarithm}
        .forward();
  });
}

template <class T, class Pattern>
int sparse_backward(const Shape& shape, const Pattern& pattern, const T* grad, const T* q,
                    const T* k, const T* v, const Strides* at, T* logarithm, T* grad_q, T* grad_k,
                    T* grad_v) {
  return guarded([&] {
    Sequences all(shape);
    std::unique_ptr<T[]> mean(new T[shape.rows() * shape.tokens]);
    Sparse<T, Pattern>{shape,
                       all,
                       pattern,
                       {shape, all, q, at[1]},
                       {shape, all, k, at[2]},
                       {shape, all, v, at[3]},
                       {shape, all, grad, at[0]},
                       nullptr,
                       logarithm,
                       grad_q,
                       grad_k,
                       grad_v,
                       mean.get()}
        .backward();
  });
}

}  // namespace flashmix
