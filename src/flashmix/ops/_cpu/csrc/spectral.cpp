// The spectral filter irfft(F * rfft(x)) of the sequences of x [.., D] along tokens, and its
// backward.

#include <algorithm>

#include "band.h"
#include "parallel.h"
#include "slots.h"

namespace flashmix {
namespace {

template <class T>
struct Spectral {
  const Shape& shape;
  int64_t most_modes;
  bool unitary;
  const T* weight;  // [most modes, D, 2]

  using L = Lanes<T>;
  using V = typename L::V;
  using C = Complex<T>;
  static constexpr int64_t W = L::W;
  // Sums over the batch are of as many parts as give about this many pieces of work, however many
  // threads there are: results must not depend on them.
  static constexpr int64_t PIECES = 8;

  int64_t dim = shape.width;
  Strides at{shape.tokens * dim, 0, dim};
  Sequences sequences{shape};
  std::vector<Band<T>> bands = bands_of<T>(sequences);

  int64_t blocks() const { return (dim + 2 * W - 1) / (2 * W); }
  // Modes in use of those that a sequence has.
  int64_t modes(const Band<T>& band) const { return std::min(most_modes, band.n / 2 + 1); }

  template <int... lane>
  static C separated(V a, V b, std::integer_sequence<int, lane...>) {
    return {pick<T, (2 * lane)...>(a, b), pick<T, (2 * lane + 1)...>(a, b)};
  }
  C factor(const Band<T>& band, int64_t k, int64_t c) const {
    const T* row = weight + k * dim * 2;
    C f = separated(load_lanes(row, 2 * c, 2 * dim), load_lanes(row, 2 * c + W, 2 * dim),
                 std::make_integer_sequence<int, W>{});
    if (band.own(k)) f.im = V{};
    return f;
  }

  void filter(const Band<T>& band, C* z, int64_t c, bool conjugated) const {
    for (int64_t k = 0; k < modes(band); ++k) {
      if (unitary && band.own(k)) continue;
      C one = factor(band, k, c), other = factor(band, k, c + W);
      if (conjugated) one = conjugate(one), other = conjugate(other);
      Pair<T> x = band.part(z, k);
      band.join(z, k, {multiply(x.one, one), multiply(x.other, other)});
    }
    if (unitary) return;
    for (int64_t k = modes(band); k <= band.n - modes(band); ++k) band.mode(z, k) = C{};
  }

  void forward(const T* x, const T* bias, T* y) const {
    Shares shares;
    for (const Band<T>& band : bands)
      for (int64_t i = 0; i < blocks(); ++i) shares.add(cost(band));
    shares.run([&](int64_t i) {
      int64_t s = i / blocks(), c = i % blocks() * 2 * W;
      const Band<T>& band = bands[s];
      zero_padding(sequences, s, y, at, 0, c, dim);
      if (!band.n) return;
      C* z = reinterpret_cast<C*>(scratch<V>(2 * band.n));
      band.analyse(z, Rows<const T>(sequences[s], x, at), c, dim);
      filter(band, z, c, false);
      V one = {}, other = {};
      if (bias) one = load_lanes(bias, c, dim), other = load_lanes(bias, c + W, dim);
      band.synthesise(z, Rows<T>(sequences[s], y, at), c, dim, one, other);
    });
  }

  // Padding costs what writing it does.
  int64_t cost(const Band<T>& band) const {
    return band.n ? band.cost() + 16 * modes(band) + 2 * shape.tokens : 2 * shape.tokens;
  }

  // grad_weight [most modes, D, 2] and grad_bias [D] are zero where nothing is added to them.
  void backward(const T* grad, const T* x, T* grad_x, T* grad_weight, T* grad_bias) const {
    std::vector<int64_t> costs{0};
    for (const Band<T>& band : bands) costs.push_back(costs.back() + cost(band));
    int64_t batch = sequences.size(), size = most_modes * dim * 2;
    int64_t parts = std::min(batch, (PIECES + blocks() - 1) / blocks());
    // Part p begins where p / parts of the cost are behind.
    std::vector<int64_t> firsts;
    for (int64_t p = 0; p <= parts; ++p)
      firsts.push_back(p == parts ? batch
                                  : std::lower_bound(costs.begin(), costs.end() - 1,
                                                     costs.back() / parts * p) -
                                        costs.begin());
    std::unique_ptr<T[]> sums(parts > 1 ? new T[(parts - 1) * (size + dim)]() : nullptr);
    auto part_of = [&](int64_t p) { return sums.get() + (p - 1) * (size + dim); };
    Shares shares;
    for (int64_t p = 0; p < parts; ++p)
      for (int64_t i = 0; i < blocks(); ++i) shares.add(costs[firsts[p + 1]] - costs[firsts[p]]);
    shares.run([&](int64_t i) {
      int64_t p = i / blocks(), c = i % blocks() * 2 * W;
      backward_part(firsts[p], firsts[p + 1], c, grad, x, grad_x, p ? part_of(p) : grad_weight,
                    p ? part_of(p) + size : grad_bias);
    });
    auto add = [&](T* to, int64_t from, int64_t count) {
      for (int64_t p = 1; p < parts; ++p)
        for (int64_t i = 0; i < count; ++i) to[i] += part_of(p)[from + i];
    };
    parallel(parts > 1 ? most_modes : 0, [&](int64_t begin, int64_t end) {
      add(grad_weight + begin * dim * 2, begin * dim * 2, (end - begin) * dim * 2);
    });
    add(grad_bias, size, dim);
  }

  // Channels c .. c + 2 W of some sequences, whose sums are this part's gradients of the weight and
  // of the bias, which the lowest mode of the output's gradient is.
  void backward_part(int64_t first, int64_t last, int64_t c, const T* grad, const T* x, T* grad_x,
                     T* grad_weight, T* grad_bias) const {
    int64_t n = 0, most = 0;
    for (int64_t s = first; s < last; ++s) {
      n = std::max(n, bands[s].n);
      most = std::max(most, modes(bands[s]));
    }
    C* z = reinterpret_cast<C*>(scratch<V>(4 * n + 4 * most));
    C* upstream = z + n;
    Pair<T>* sums = reinterpret_cast<Pair<T>*>(upstream + n);
    std::fill_n(sums, most, Pair<T>{});
    V bias[2] = {};
    for (int64_t s = first; s < last; ++s) {
      const Band<T>& band = bands[s];
      zero_padding(sequences, s, grad_x, at, 0, c, dim);
      if (!band.n) continue;
      band.analyse(z, Rows<const T>(sequences[s], x, at), c, dim);
      band.analyse(upstream, Rows<const T>(sequences[s], grad, at), c, dim);
      bias[0] += band.mode(upstream, 0).re;
      bias[1] += band.mode(upstream, 0).im;
      for (int64_t k = 0; k < modes(band); ++k) {
        if (unitary && band.own(k)) continue;
        Pair<T> from = band.part(z, k), to = band.part(upstream, k);
        // Every mode but the self-conjugate ones represents itself and its mirror image.
        T share = (band.own(k) ? T(1) : T(2)) / T(band.n);
        C one = multiply(conjugate(from.one), to.one);
        C other = multiply(conjugate(from.other), to.other);
        if (band.own(k)) one.im = other.im = V{};
        sums[k].one = sums[k].one + one * share;
        sums[k].other = sums[k].other + other * share;
      }
      filter(band, upstream, c, true);
      band.synthesise(upstream, Rows<T>(sequences[s], grad_x, at), c, dim);
    }
    for (int64_t l = 0; l < 2 * W && c + l < dim; ++l) {
      grad_bias[c + l] = bias[l / W][l % W];
      for (int64_t k = 0; k < most; ++k) {
        const C& sum = l < W ? sums[k].one : sums[k].other;
        T* to = grad_weight + (k * dim + c + l) * 2;
        to[0] = sum.re[l % W];
        to[1] = sum.im[l % W];
      }
    }
  }
};

template <class T>
int forward(const Shape& shape, int64_t modes, bool unitary, const T* x, const T* weight,
            const T* bias, T* y) {
  return guarded([&] { Spectral<T>{shape, modes, unitary, weight}.forward(x, bias, y); });
}

template <class T>
int backward(const Shape& shape, int64_t modes, bool unitary, const T* grad, const T* x,
             const T* weight, T* grad_x, T* grad_weight, T* grad_bias) {
  return guarded([&] {
    Spectral<T>{shape, modes, unitary, weight}.backward(grad, x, grad_x, grad_weight, grad_bias);
  });
}

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int spectral_forward_f32(const flashmix::Shape* shape, int64_t modes, bool unitary,
                                         const float* x, const float* weight, const float* bias,
                                         float* y) {
  return flashmix::forward(*shape, modes, unitary, x, weight, bias, y);
}

FLASHMIX_EXPORT int spectral_backward_f32(const flashmix::Shape* shape, int64_t modes, bool unitary,
                                          const float* grad, const float* x, const float* weight,
                                          float* grad_x, float* grad_weight, float* grad_bias) {
  return flashmix::backward(*shape, modes, unitary, grad, x, weight, grad_x, grad_weight, grad_bias);
}

FLASHMIX_EXPORT int spectral_forward_f64(const flashmix::Shape* shape, int64_t modes, bool unitary,
                                         const double* x, const double* weight, const double* bias,
                                         double* y) {
  return flashmix::forward(*shape, modes, unitary, x, weight, bias, y);
}

FLASHMIX_EXPORT int spectral_backward_f64(const flashmix::Shape* shape, int64_t modes, bool unitary,
                                          const double* grad, const double* x, const double* weight,
                                          double* grad_x, double* grad_weight, double* grad_bias) {
  return flashmix::backward(*shape, modes, unitary, grad, x, weight, grad_x, grad_weight, grad_bias);
}

FLASHMIX_SLOTS(spectral_forward_f32)
FLASHMIX_SLOTS(spectral_backward_f32)
FLASHMIX_SLOTS(spectral_forward_f64)
FLASHMIX_SLOTS(spectral_backward_f64)
