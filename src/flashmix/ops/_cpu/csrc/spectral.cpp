// The spectral filter irfft(F * rfft(x)) of x [B, N, D] along tokens, and its backward.
//
// Two vectors of channels are the real and the imaginary part of one sequence: a transform, the
// filter on the parted modes, and the way back, while the sequence stays in cache.

#include <algorithm>

#include "fft.h"
#include "parallel.h"
#include "shuffle.h"

namespace flashmix {
namespace {

template <class T>
struct Spectral {
  int64_t batch, n, dim, modes;  // modes in use, at most n / 2 + 1
  bool unitary;
  const T* weight;  // [>= modes, D, 2]
  std::shared_ptr<const Plan<T>> plan = Plan<T>::of(n);

  using L = Lanes<T>;
  using V = typename L::V;
  using C = Complex<T>;
  static constexpr int64_t W = L::W;

  // One vector of channels each.
  struct Pair {
    C one, other;
  };

  int64_t blocks() const { return (dim + 2 * W - 1) / (2 * W); }
  bool own(int64_t k) const { return k == 0 || 2 * k == n; }

  static V load(const T* row, int64_t c, int64_t dim) {
    if (c + W <= dim) return L::load(row + c);
    T lanes[W] = {};
    for (int64_t i = 0; c + i < dim; ++i) lanes[i] = row[c + i];
    return L::load(lanes);
  }
  static void store(T* row, int64_t c, int64_t dim, V v) {
    if (c + W <= dim) return L::store(row + c, v);
    for (int64_t i = 0; c + i < dim; ++i) row[c + i] = v[i];
  }

  // Channels c .. c + 2 W of a sequence [N, D], transformed.
  void transform(C* z, const T* x, int64_t c) const {
    for (int64_t t = 0; t < n; ++t) z[t] = {load(x + t * dim, c, dim), load(x + t * dim, c + W, dim)};
    fft(z, *plan);
  }

  // And back, with a bias where there is one.
  void restore(C* z, T* y, int64_t c, const T* bias) const {
    fft<T, false>(z, *plan);
    T scale = T(1) / T(n);
    V one = {}, other = {};
    if (bias) one = load(bias, c, dim), other = load(bias, c + W, dim);
    for (int64_t t = 0; t < n; ++t) {
      store(y + t * dim, c, dim, z[t].re * scale + one);
      store(y + t * dim, c + W, dim, z[t].im * scale + other);
    }
  }

  C& mode(C* z, int64_t k) const { return z[plan->place[k]]; }

  // Mode k of the channels in z's real part and of those in its imaginary part.
  Pair part(C* z, int64_t k) const {
    C at = mode(z, k), across = mode(z, k ? n - k : 0);
    return {C{at.re + across.re, at.im - across.im} * T(0.5),
            C{at.im + across.im, across.re - at.re} * T(0.5)};
  }
  void join(C* z, int64_t k, const Pair& x) const {
    mode(z, k) = {x.one.re - x.other.im, x.one.im + x.other.re};
    mode(z, k ? n - k : 0) = {x.one.re + x.other.im, x.other.re - x.one.im};
  }

  template <int... lane>
  static C parted(V a, V b, std::integer_sequence<int, lane...>) {
    return {pick<T, (2 * lane)...>(a, b), pick<T, (2 * lane + 1)...>(a, b)};
  }
  C factor(int64_t k, int64_t c) const {
    const T* row = weight + k * dim * 2;
    C f = parted(load(row, 2 * c, 2 * dim), load(row, 2 * c + W, 2 * dim),
                 std::make_integer_sequence<int, W>{});
    if (own(k)) f.im = V{};
    return f;
  }

  static C multiply(const C& a, const C& b) {
    return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
  }
  static C conjugate(const C& a) { return {a.re, -a.im}; }

  void filter(C* z, int64_t c, bool conjugated) const {
    for (int64_t k = 0; k < modes; ++k) {
      if (unitary && own(k)) continue;
      C one = factor(k, c), other = factor(k, c + W);
      if (conjugated) one = conjugate(one), other = conjugate(other);
      Pair x = part(z, k);
      join(z, k, {multiply(x.one, one), multiply(x.other, other)});
    }
    if (unitary) return;
    for (int64_t k = modes; k <= n - modes; ++k) mode(z, k) = C{};
  }

  void forward(const T* x, const T* bias, T* y) const {
    parallel(batch * blocks(), [&](int64_t begin, int64_t end) {
      C* z = reinterpret_cast<C*>(scratch<V>(2 * n));
      for (int64_t i = begin; i < end; ++i) {
        int64_t start = i / blocks() * n * dim, c = i % blocks() * 2 * W;
        transform(z, x + start, c);
        filter(z, c, false);
        restore(z, y + start, c, bias);
      }
    });
  }

  // A block of channels sums over the batch by itself, always in the same order.
  void backward(const T* grad, const T* x, T* grad_x, T* grad_weight) const {
    parallel(blocks(), [&](int64_t begin, int64_t end) {
      C* z = reinterpret_cast<C*>(scratch<V>(4 * n + 4 * modes));
      C* upstream = z + n;
      Pair* sums = reinterpret_cast<Pair*>(upstream + n);
      for (int64_t i = begin; i < end; ++i) {
        int64_t c = i * 2 * W;
        std::fill_n(sums, modes, Pair{});
        for (int64_t b = 0; b < batch; ++b) {
          transform(z, x + b * n * dim, c);
          transform(upstream, grad + b * n * dim, c);
          for (int64_t k = 0; k < modes; ++k) {
            Pair from = part(z, k), to = part(upstream, k);
            sums[k].one = sums[k].one + multiply(conjugate(from.one), to.one);
            sums[k].other = sums[k].other + multiply(conjugate(from.other), to.other);
          }
          filter(upstream, c, true);
          restore(upstream, grad_x + b * n * dim, c, nullptr);
        }
        for (int64_t k = 0; k < modes; ++k) {
          // Every mode but the self-conjugate ones stands for itself and its mirror image.
          T share = own(k) ? (unitary ? T(0) : T(1) / T(n)) : T(2) / T(n);
          for (int64_t l = 0; l < 2 * W && c + l < dim; ++l) {
            const C& sum = l < W ? sums[k].one : sums[k].other;
            T* to = grad_weight + (k * dim + c + l) * 2;
            to[0] = share * sum.re[l % W];
            to[1] = own(k) ? T(0) : share * sum.im[l % W];
          }
        }
      }
    });
  }
};

template <class T>
int forward(int64_t batch, int64_t n, int64_t dim, int64_t modes, bool unitary, const T* x,
            const T* weight, const T* bias, T* y) {
  return guarded([&] { Spectral<T>{batch, n, dim, modes, unitary, weight}.forward(x, bias, y); });
}

template <class T>
int backward(int64_t batch, int64_t n, int64_t dim, int64_t modes, bool unitary, const T* grad,
             const T* x, const T* weight, T* grad_x, T* grad_weight) {
  return guarded([&] {
    Spectral<T>{batch, n, dim, modes, unitary, weight}.backward(grad, x, grad_x, grad_weight);
  });
}

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int spectral_forward_f32(int64_t batch, int64_t n, int64_t dim, int64_t modes,
                                         bool unitary, const float* x, const float* weight,
                                         const float* bias, float* y) {
  return flashmix::forward(batch, n, dim, modes, unitary, x, weight, bias, y);
}

FLASHMIX_EXPORT int spectral_forward_f64(int64_t batch, int64_t n, int64_t dim, int64_t modes,
                                         bool unitary, const double* x, const double* weight,
                                         const double* bias, double* y) {
  return flashmix::forward(batch, n, dim, modes, unitary, x, weight, bias, y);
}

FLASHMIX_EXPORT int spectral_backward_f32(int64_t batch, int64_t n, int64_t dim, int64_t modes,
                                          bool unitary, const float* grad, const float* x,
                                          const float* weight, float* grad_x, float* grad_weight) {
  return flashmix::backward(batch, n, dim, modes, unitary, grad, x, weight, grad_x, grad_weight);
}

FLASHMIX_EXPORT int spectral_backward_f64(int64_t batch, int64_t n, int64_t dim, int64_t modes,
                                          bool unitary, const double* grad, const double* x,
                                          const double* weight, double* grad_x,
                                          double* grad_weight) {
  return flashmix::backward(batch, n, dim, modes, unitary, grad, x, weight, grad_x, grad_weight);
}
