// Fourier attention and its backward: each mode of a head weighed by its share of the head's power.
//
// One head of one sequence at a time: its spectrum, O(N dh), is kept until the power of all its
// channels is known.

#include <algorithm>

#include "band.h"
#include "parallel.h"
#include "slots.h"

namespace flashmix {
namespace {

template <class T>
struct Fourier {
  const Shape& shape;
  T eps;
  const T *v, *grad;  // grad is null in the forward
  Strides at_v, at_grad, at_y;
  T* y;  // the output, or the gradient of v

  using L = Lanes<T>;
  using V = typename L::V;
  using C = Complex<T>;
  static constexpr int64_t W = L::W;

  Sequences sequences{shape};
  std::vector<Band<T>> bands = bands_of<T>(sequences);

  struct Head;

  int64_t blocks() const { return (shape.width + 2 * W - 1) / (2 * W); }

  void run() const {
    Shares shares;
    for (const Band<T>& band : bands)
      for (int64_t h = 0; h < shape.heads; ++h)
        shares.add(blocks() * ((band.n ? band.cost() : 0) + 2 * shape.tokens));
    shares.run([&](int64_t i) {
      int64_t s = i / shape.heads, h = i % shape.heads;
      for (int64_t c = 0; c < shape.width; c += 2 * W)
        zero_padding(sequences, s, y, at_y, h, c, shape.width);
      if (bands[s].n) Head{*this, bands[s], sequences[s], h}.run();
    });
  }
};

// One head of one sequence.
template <class T>
struct Fourier<T>::Head {
  const Fourier& all;
  const Band<T>& band;
  const Sequence& sequence;
  int64_t head;

  int64_t width = all.shape.width, blocks = all.blocks(), n = band.n, count = n / 2 + 1;

  void run() const {
    int64_t each = blocks * n, spectra = all.grad ? 2 : 1;
    V* room = scratch<V>(2 * spectra * each + (3 * count + W - 1) / W);
    C* z = reinterpret_cast<C*>(room);
    T* numbers = reinterpret_cast<T*>(room + 2 * spectra * each);
    all.grad ? backward(z, numbers) : forward(z, numbers);
  }

  void transform(C* z, const T* x, const Strides& at) const {
    Rows<const T> rows(sequence, x, at, head);
    for (int64_t i = 0; i < blocks; ++i) band.analyse(z + i * n, rows, i * 2 * W, width);
  }

  // Each mode's sum over the head's channels of what add(mode of some channels, of others) gives.
  template <class Each>
  void sum_channels(T* sums, const Each& each) const {
    for (int64_t k = 0; k < count; ++k) {
      V total = {};
      for (int64_t i = 0; i < blocks; ++i) total += each(i * n, k);
      sums[k] = L::sum(total);
    }
  }

  // Re(conj(a) b) of mode k, of all channels that z and w hold.
  V product(C* z, C* w, int64_t k) const {
    Pair<T> a = band.part(z, k), b = band.part(w, k);
    return a.one.re * b.one.re + a.one.im * b.one.im + a.other.re * b.other.re +
           a.other.im * b.other.im;
  }

  // power + eps of each mode; the sum of all, in double: its roundings grow with their count.
  T powers(C* z, T* power) const {
    sum_channels(power, [&](int64_t at, int64_t k) { return product(z + at, z + at, k); });
    double total = 0;
    for (int64_t k = 0; k < count; ++k) {
      power[k] = power[k] / T(width) + all.eps;
      total += power[k];
    }
    return T(total);
  }

  void forward(C* z, T* power) const {
    transform(z, all.v, all.at_v);
    Rows<T> rows(sequence, all.y, all.at_y, head);
    T gain = T(count) / powers(z, power);
    for (int64_t i = 0; i < blocks; ++i) {
      C* at = z + i * n;
      for (int64_t k = 0; k < count; ++k) {
        T weight = power[k] * gain;
        C& mode = band.mode(at, k);
        mode = mode * weight;
        if (!band.own(k)) {
          C& across = band.mode(at, n - k);
          across = across * weight;
        }
      }
      band.synthesise(at, rows, i * 2 * W, width);
    }
  }

  // One part of the gradient is the same filter applied to the output's, the other flows through
  // the power that set the weights.
  void backward(C* z, T* power) const {
    C* upstream = z + blocks * n;
    T *slope = power + count, *through = slope + count;
    transform(z, all.v, all.at_v);
    transform(upstream, all.grad, all.at_grad);
    T total = powers(z, power);
    double sum = 0;
    sum_channels(slope, [&](int64_t at, int64_t k) { return product(z + at, upstream + at, k); });
    for (int64_t k = 0; k < count; ++k) {
      // Every mode but the self-conjugate ones represents itself and its mirror image.
      slope[k] *= (band.own(k) ? T(1) : T(2)) / T(n);
      sum += slope[k] * (power[k] / total);
    }
    T mean = T(sum);
    for (int64_t k = 0; k < count; ++k) {
      T slope_of_power = (slope[k] - mean) * T(count) / total;
      through[k] = T(2 * n) / T(width) * slope_of_power / (band.own(k) ? T(1) : T(2));
      power[k] *= T(count) / total;
    }
    Rows<T> rows(sequence, all.y, all.at_y, head);
    for (int64_t i = 0; i < blocks; ++i) {
      C *to = upstream + i * n, *from = z + i * n;
      for (int64_t k = 0; k < n; ++k) {
        int64_t own = std::min(k, n - k);
        C& mode = band.mode(to, k);
        mode = mode * power[own] + band.mode(from, k) * through[own];
      }
      band.synthesise(to, rows, i * 2 * W, width);
    }
  }
};

template <class T>
int fourier_forward(const Shape& shape, double eps, const T* v, const Strides* at, T* y) {
  return guarded([&] {
    Fourier<T>{shape, T(eps), v, nullptr, at[0], {}, at[1], y}.run();
  });
}

template <class T>
int fourier_backward(const Shape& shape, double eps, const T* grad, const T* v, const Strides* at,
                     T* grad_v) {
  return guarded([&] {
    Fourier<T>{shape, T(eps), v, grad, at[1], at[0], at[2], grad_v}.run();
  });
}

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int fourier_forward_f32(const flashmix::Shape* shape, double eps, const float* v,
                                        const flashmix::Strides* at, float* y) {
  return flashmix::fourier_forward(*shape, eps, v, at, y);
}

FLASHMIX_EXPORT int fourier_forward_f64(const flashmix::Shape* shape, double eps, const double* v,
                                        const flashmix::Strides* at, double* y) {
  return flashmix::fourier_forward(*shape, eps, v, at, y);
}

FLASHMIX_EXPORT int fourier_backward_f32(const flashmix::Shape* shape, double eps,
                                         const float* grad, const float* v,
                                         const flashmix::Strides* at, float* grad_v) {
  return flashmix::fourier_backward(*shape, eps, grad, v, at, grad_v);
}

FLASHMIX_EXPORT int fourier_backward_f64(const flashmix::Shape* shape, double eps,
                                         const double* grad, const double* v,
                                         const flashmix::Strides* at, double* grad_v) {
  return flashmix::fourier_backward(*shape, eps, grad, v, at, grad_v);
}

FLASHMIX_SLOTS(fourier_forward_f32)
FLASHMIX_SLOTS(fourier_forward_f64)
FLASHMIX_SLOTS(fourier_backward_f32)
FLASHMIX_SLOTS(fourier_backward_f64)
