// The modes of sequences along tokens: two vectors of channels are the real and the imaginary part
// of one complex sequence, which stays in cache from transform to output.
#pragma once

#include "fft.h"
#include "sequences.h"
#include "shuffle.h"

namespace flashmix {

// One mode of two vectors of channels.
template <class T>
struct Pair {
  Complex<T> one, other;
};

template <class T>
Complex<T> multiply(const Complex<T>& a, const Complex<T>& b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}

template <class T>
Complex<T> conjugate(const Complex<T>& a) {
  return {a.re, -a.im};
}

// A vector of row[c .. dim), zero beyond; and back.
template <class T>
typename Lanes<T>::V load_lanes(const T* row, int64_t c, int64_t dim) {
  constexpr int64_t W = Lanes<T>::W;
  if (c + W <= dim) return Lanes<T>::load(row + c);
  T lanes[W] = {};
  for (int64_t i = 0; c + i < dim; ++i) lanes[i] = row[c + i];
  return Lanes<T>::load(lanes);
}

template <class T>
void store_lanes(T* row, int64_t c, int64_t dim, typename Lanes<T>::V v) {
  constexpr int64_t W = Lanes<T>::W;
  if (c + W <= dim) return Lanes<T>::store(row + c, v);
  for (int64_t i = 0; c + i < dim; ++i) row[c + i] = v[i];
}

// Tokens n and their modes k = 0 .. n / 2, of a complex sequence z[0 .. n).
template <class T>
struct Band {
  using L = Lanes<T>;
  using V = typename L::V;
  using C = Complex<T>;
  static constexpr int64_t W = L::W;

  int64_t n;
  std::shared_ptr<const Plan<T>> plan;

  C& mode(C* z, int64_t k) const { return z[plan->place[k]]; }
  // Mode k of the channels in z's real part and of those in its imaginary part.
  Pair<T> part(C* z, int64_t k) const {
    C at = mode(z, k), across = mode(z, k ? n - k : 0);
    return {C{at.re + across.re, at.im - across.im} * T(0.5),
            C{at.im + across.im, across.re - at.re} * T(0.5)};
  }
  void join(C* z, int64_t k, const Pair<T>& x) const {
    mode(z, k) = {x.one.re - x.other.im, x.one.im + x.other.re};
    mode(z, k ? n - k : 0) = {x.one.re + x.other.im, x.other.re - x.one.im};
  }
  // Modes that are their own mirror image are real.
  bool own(int64_t k) const { return k == 0 || 2 * k == n; }

  // The modes of channels c .. c + 2 W of the `dim` of each row.
  void analyse(C* z, Rows<const T> x, int64_t c, int64_t dim) const {
    for (int64_t t = 0; t < n; ++t) {
      const T* row = x(t);
      z[t] = {load_lanes(row, c, dim), load_lanes(row, c + W, dim)};
    }
    fft(z, *plan);
  }

  // And back, with a vector each added to all rows.
  void synthesise(C* z, Rows<T> y, int64_t c, int64_t dim, V one = V{},
                  V other = V{}) const {
    fft<T, false>(z, *plan);
    T scale = T(1) / T(n);
    for (int64_t t = 0; t < n; ++t) {
      T* row = y(t);
      store_lanes(row, c, dim, z[t].re * scale + one);
      store_lanes(row, c + W, dim, z[t].im * scale + other);
    }
  }

  // About how long the way there and back takes.
  int64_t cost() const { return 2 * plan->cost() + 32 * n; }
};

// Those of each sequence, in order; of none where it has no token.
template <class T>
std::vector<Band<T>> bands_of(const Sequences& sequences) {
  std::vector<Band<T>> bands;
  for (int64_t s = 0; s < sequences.size(); ++s) {
    int64_t n = sequences[s].length;
    if (s && bands.back().n == n)
      bands.push_back(bands.back());
    else
      bands.push_back({n, n ? plan_of<T>(n) : nullptr});
  }
  return bands;
}

// Zeros in channels c .. c + 2 W of a sequence's padding.
template <class T>
void zero_padding(const Sequences& sequences, int64_t s, T* y, const Strides& at, int64_t head,
                  int64_t c, int64_t dim) {
  int64_t end = std::min(dim, c + 2 * Lanes<T>::W);
  T* row = y + sequences[s].row * at.batch + head * at.head;
  sequences.each_padding(s, [&](int64_t t) {
    std::fill(row + t * at.token + c, row + t * at.token + end, T(0));
  });
}

}  // namespace flashmix
