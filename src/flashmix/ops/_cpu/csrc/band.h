// The modes of sequences along tokens: two vectors of channels are the real and the imaginary part
// of one complex sequence, which stays in cache from transform to output.
#pragma once

#include "fft.h"
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
  std::shared_ptr<const Plan<T>> plan = plan_of<T>(n);

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

  // The modes of channels c .. c + 2 W of rows of `dim` channels, `stride` apart.
  void analyse(C* z, const T* x, int64_t stride, int64_t c, int64_t dim) const {
    for (int64_t t = 0; t < n; ++t)
      z[t] = {load_lanes(x + t * stride, c, dim), load_lanes(x + t * stride, c + W, dim)};
    fft(z, *plan);
  }

  // And back, with a vector each added to all rows.
  void synthesise(C* z, T* y, int64_t stride, int64_t c, int64_t dim, V one = V{},
                  V other = V{}) const {
    fft<T, false>(z, *plan);
    T scale = T(1) / T(n);
    for (int64_t t = 0; t < n; ++t) {
      store_lanes(y + t * stride, c, dim, z[t].re * scale + one);
      store_lanes(y + t * stride, c + W, dim, z[t].im * scale + other);
    }
  }
};

}  // namespace flashmix
