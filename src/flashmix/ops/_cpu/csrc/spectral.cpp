// The spectral filter irfft(F * rfft(x)) of x [B, N, D] along tokens, and its backward.

#include <algorithm>

#include "band.h"
#include "parallel.h"

namespace flashmix {
namespace {

template <class T>
struct Spectral {
  int64_t batch, n, dim, modes;  // modes in use, at most n / 2 + 1
  bool unitary;
  const T* weight;  // [>= modes, D, 2]
  Band<T> band{n};

  using L = Lanes<T>;
  using V = typename L::V;
  using C = Complex<T>;
  static constexpr int64_t W = L::W;
  // Sums over the batch are of as many parts as give about this many pieces of work, however many
  // threads there are: results must not depend on them.
  static constexpr int64_t PIECES = 8;

  int64_t blocks() const { return (dim + 2 * W - 1) / (2 * W); }

  template <int... lane>
  static C parted(V a, V b, std::integer_sequence<int, lane...>) {
    return {pick<T, (2 * lane)...>(a, b), pick<T, (2 * lane + 1)...>(a, b)};
  }
  C factor(int64_t k, int64_t c) const {
    const T* row = weight + k * dim * 2;
    C f = parted(load_lanes(row, 2 * c, 2 * dim), load_lanes(row, 2 * c + W, 2 * dim),
                 std::make_integer_sequence<int, W>{});
    if (band.own(k)) f.im = V{};
    return f;
  }

  void filter(C* z, int64_t c, bool conjugated) const {
    for (int64_t k = 0; k < modes; ++k) {
      if (unitary && band.own(k)) continue;
      C one = factor(k, c), other = factor(k, c + W);
      if (conjugated) one = conjugate(one), other = conjugate(other);
      Pair<T> x = band.part(z, k);
      band.join(z, k, {multiply(x.one, one), multiply(x.other, other)});
    }
    if (unitary) return;
    for (int64_t k = modes; k <= n - modes; ++k) band.mode(z, k) = C{};
  }

  void forward(const T* x, const T* bias, T* y) const {
    parallel(batch * blocks(), [&](int64_t begin, int64_t end) {
      C* z = reinterpret_cast<C*>(scratch<V>(2 * n));
      for (int64_t i = begin; i < end; ++i) {
        int64_t start = i / blocks() * n * dim, c = i % blocks() * 2 * W;
        band.analyse(z, x + start, dim, c, dim);
        filter(z, c, false);
        V one = {}, other = {};
        if (bias) one = load_lanes(bias, c, dim), other = load_lanes(bias, c + W, dim);
        band.synthesise(z, y + start, dim, c, dim, one, other);
      }
    });
  }

  void backward(const T* grad, const T* x, T* grad_x, T* grad_weight) const {
    int64_t parts = std::min(batch, (PIECES + blocks() - 1) / blocks()), size = modes * dim * 2;
    std::unique_ptr<T[]> sums(new T[(parts - 1) * size]);
    auto part_of = [&](int64_t p) { return p ? sums.get() + (p - 1) * size : grad_weight; };
    parallel(parts * blocks(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        int64_t p = i / blocks();
        backward_part(batch * p / parts, batch * (p + 1) / parts, i % blocks() * 2 * W, grad, x,
                      grad_x, part_of(p));
      }
    });
    parallel(parts > 1 ? modes : 0, [&](int64_t begin, int64_t end) {
      for (int64_t p = 1; p < parts; ++p)
        for (int64_t i = begin * dim * 2; i < end * dim * 2; ++i) grad_weight[i] += part_of(p)[i];
    });
  }

  // Channels c .. c + 2 W of some sequences, whose sum is this part's gradient of the weight.
  void backward_part(int64_t first, int64_t last, int64_t c, const T* grad, const T* x, T* grad_x,
                     T* grad_weight) const {
    C* z = reinterpret_cast<C*>(scratch<V>(4 * n + 4 * modes));
    C* upstream = z + n;
    Pair<T>* sums = reinterpret_cast<Pair<T>*>(upstream + n);
    std::fill_n(sums, modes, Pair<T>{});
    for (int64_t b = first; b < last; ++b) {
      band.analyse(z, x + b * n * dim, dim, c, dim);
      band.analyse(upstream, grad + b * n * dim, dim, c, dim);
      for (int64_t k = 0; k < modes; ++k) {
        Pair<T> from = band.part(z, k), to = band.part(upstream, k);
        sums[k].one = sums[k].one + multiply(conjugate(from.one), to.one);
        sums[k].other = sums[k].other + multiply(conjugate(from.other), to.other);
      }
      filter(upstream, c, true);
      band.synthesise(upstream, grad_x + b * n * dim, dim, c, dim);
    }
    for (int64_t k = 0; k < modes; ++k) {
      // Every mode but the self-conjugate ones stands for itself and its mirror image.
      T share = band.own(k) ? (unitary ? T(0) : T(1) / T(n)) : T(2) / T(n);
      for (int64_t l = 0; l < 2 * W && c + l < dim; ++l) {
        const C& sum = l < W ? sums[k].one : sums[k].other;
        T* to = grad_weight + (k * dim + c + l) * 2;
        to[0] = share * sum.re[l % W];
        to[1] = band.own(k) ? T(0) : share * sum.im[l % W];
      }
    }
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
