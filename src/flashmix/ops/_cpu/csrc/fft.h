// A complex Fourier transform of any length, of as many sequences as a vector has lanes.
//
// Decimation in frequency, in place, the halves of the work one after the other so that they fit
// ever nearer caches. Outputs come in the order of their reversed digits: plan.place[k] is where.
//
// A length with a prime factor that has no butterfly is a circular convolution of a longer length
// that has none such (Bluestein): with w[t] = exp(-pi i t^2 / n), X[k] = w[k] sum over t of
// (x[t] w[t]) conj w[k - t].
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <memory>
#include <mutex>
#include <vector>

#include "parallel.h"
#include "simd.h"

namespace flashmix {

template <class T>
struct Complex {
  typename Lanes<T>::V re, im;

  Complex operator+(const Complex& o) const { return {re + o.re, im + o.im}; }
  Complex operator-(const Complex& o) const { return {re - o.re, im - o.im}; }
  Complex operator*(T factor) const { return {re * factor, im * factor}; }
  Complex by_minus_i() const { return {im, -re}; }
  Complex times(T wr, T wi) const { return {re * wr - im * wi, re * wi + im * wr}; }
};

constexpr int64_t LARGEST_UNROLLED = 19;  // prime with a butterfly of its own
constexpr int64_t LARGEST_PRIME = 97;     // that is cheaper summed than convolved

template <class T>
struct Plan;

// The plan for n, kept for the next call while all that are kept fit PLAN_BYTES: batches of many
// lengths take as many plans.
constexpr size_t PLAN_BYTES = 32 << 20;

template <class T>
std::shared_ptr<const Plan<T>> plan_of(int64_t n) {
  static std::mutex guard;
  static std::map<int64_t, std::shared_ptr<const Plan<T>>> kept;
  static size_t bytes = 0;
  {
    std::lock_guard<std::mutex> lock(guard);
    auto found = kept.find(n);
    if (found != kept.end()) return found->second;
  }
  auto made = std::make_shared<const Plan<T>>(n);  // asks for the plans of other lengths
  std::lock_guard<std::mutex> lock(guard);
  if (bytes + made->bytes() > PLAN_BYTES) kept.clear(), bytes = 0;
  if (kept.emplace(n, made).second) bytes += made->bytes();
  return made;
}

template <class T>
struct Plan {
  struct Level {
    int64_t radix, rest;      // the length is radix * rest
    std::vector<T> twiddles;  // [rest][radix - 1][2]
    std::vector<T> wave;      // of a radix that is not unrolled, see any_odd
  };
  int64_t n;
  std::vector<int64_t> place;
  std::vector<Level> levels;  // or, of a convolution:
  std::shared_ptr<const Plan> longer;
  std::vector<T> wave, filter;  // w [n][2]; the transform of conj w in longer's order, / longer->n

  explicit Plan(int64_t n) : n(n), place(n, 0) {
    std::vector<int64_t> radices = factors(n);
    int64_t length = n;
    for (int64_t radix : radices) length /= radix;
    if (length > 1) {
      convolve();
      return;
    }
    length = n;
    for (int64_t radix : radices) {
      Level level{radix, length / radix, {}, {}};
      for (int64_t j = 0; j < level.rest; ++j)
        for (int64_t s = 1; s < radix; ++s) {
          double angle = -2 * M_PI * double(j * s % length) / double(length);
          level.twiddles.push_back(T(std::cos(angle)));
          level.twiddles.push_back(T(std::sin(angle)));
        }
      if (radix > LARGEST_UNROLLED) level.wave = waves(radix);
      levels.push_back(std::move(level));
      length /= radix;
    }
    for (int64_t k = 0; k < n; ++k) {
      int64_t digits = k;
      for (const Level& level : levels) {
        place[k] += digits % level.radix * level.rest;
        digits /= level.radix;
      }
    }
  }

  void convolve();

  static std::vector<T> waves(int64_t p) {
    std::vector<T> found;
    for (int64_t s = 1; 2 * s < p; s += 2)
      for (int64_t q = 1; 2 * q < p; ++q)
        for (int64_t i = 0; i < 2; ++i) {
          double angle = 2 * M_PI * double(q * (s + i) % p) / double(p);
          found.push_back(T(std::cos(angle)));
          found.push_back(T(std::sin(angle)));
        }
    return found;
  }

  size_t bytes() const {
    size_t numbers = wave.size() + filter.size();
    for (const Level& level : levels) numbers += level.twiddles.size() + level.wave.size();
    return numbers * sizeof(T) + place.size() * sizeof(int64_t);
  }

  // About how long a transform takes, of which reading and writing its elements is n * 16.
  int64_t cost() const {
    if (longer) return 2 * longer->cost() + 8 * longer->n;
    int64_t each = 0;
    for (const Level& level : levels) each += level.radix + 4;
    return n * each;
  }

  static std::vector<int64_t> factors(int64_t n) {
    std::vector<int64_t> found;
    int64_t twos = __builtin_ctzll(n);
    n >>= twos;
    for (; twos % 3 && twos > 1; twos -= 2) found.push_back(4);
    for (; twos >= 3; twos -= 3) found.insert(found.begin(), 8);
    if (twos) found.push_back(2);
    for (int64_t p = 3; p <= LARGEST_PRIME; p += 2)
      for (; n % p == 0; n /= p) found.push_back(p);
    return found;
  }
};

template <class T>
struct Butterfly {
  using C = Complex<T>;

  static void two(C* x) {
    C a = x[0], b = x[1];
    x[0] = a + b;
    x[1] = a - b;
  }
  static void four(C& a, C& b, C& c, C& d) {
    C p = a + c, q = a - c, r = b + d, s = (b - d).by_minus_i();
    a = p + r;
    b = q + s;
    c = p - r;
    d = q - s;
  }
  static void eight(C* x) {
    const T h = T(M_SQRT1_2);
    C e[4] = {x[0], x[2], x[4], x[6]}, o[4] = {x[1], x[3], x[5], x[7]};
    four(e[0], e[1], e[2], e[3]);
    four(o[0], o[1], o[2], o[3]);
    o[1] = C{o[1].re + o[1].im, o[1].im - o[1].re} * h;
    o[2] = o[2].by_minus_i();
    o[3] = C{o[3].im - o[3].re, -o[3].re - o[3].im} * h;
    for (int s = 0; s < 4; ++s) {
      x[s] = e[s] + o[s];
      x[s + 4] = e[s] - o[s];
    }
  }

  // Odd lengths: x[q] and x[p - q] share a cosine and, but for the sign, a sine.
  template <int p>
  static void odd(C* x) {
    static const Wave<p> wave;
    constexpr int half = (p - 1) / 2;
    C sum[half], difference[half], first = x[0];
    for (int q = 1; q <= half; ++q) {
      sum[q - 1] = x[q] + x[p - q];
      difference[q - 1] = (x[q] - x[p - q]).by_minus_i();
      x[0] = x[0] + sum[q - 1];
    }
    for (int s = 1; s <= half; ++s) {
      C even = first, odd = {};
      for (int q = 1; q <= half; ++q) {
        even = even + sum[q - 1] * wave.cosine[q * s % p];
        odd = odd + difference[q - 1] * wave.sine[q * s % p];
      }
      x[s] = even + odd;
      x[p - s] = even - odd;
    }
  }

 private:
  template <int p>
  struct Wave {
    T cosine[p], sine[p];
    Wave() {
      for (int i = 0; i < p; ++i) {
        cosine[i] = T(std::cos(2 * M_PI * i / p));
        sine[i] = T(std::sin(2 * M_PI * i / p));
      }
    }
  };
};

// The same for any odd length p, with room for p sums. Two outputs share a look at the sums; `wave`
// holds their cosines and sines in the order of use, [pairs of outputs][(p - 1) / 2][4].
template <class T>
void any_odd(Complex<T>* x, int64_t p, const T* wave, Complex<T>* sums) {
  using V = typename Lanes<T>::V;
  using C = Complex<T>;
  int64_t half = (p - 1) / 2;
  C *differences = sums + half, first = x[0];
  for (int64_t q = 1; q <= half; ++q) {
    sums[q - 1] = x[q] + x[p - q];
    differences[q - 1] = (x[q] - x[p - q]).by_minus_i();
    x[0] = x[0] + sums[q - 1];
  }
  for (int64_t s = 1; s <= half; s += 2) {
    C even = first, odd = {}, next_even = first, next_odd = {};
    for (int64_t q = 0; q < half; ++q, wave += 4) {
      C sum = sums[q], difference = differences[q];
      V cosine = Lanes<T>::all(wave[0]), sine = Lanes<T>::all(wave[1]);
      even = {even.re + sum.re * cosine, even.im + sum.im * cosine};
      odd = {odd.re + difference.re * sine, odd.im + difference.im * sine};
      cosine = Lanes<T>::all(wave[2]), sine = Lanes<T>::all(wave[3]);
      next_even = {next_even.re + sum.re * cosine, next_even.im + sum.im * cosine};
      next_odd = {next_odd.re + difference.re * sine, next_odd.im + difference.im * sine};
    }
    x[s] = even + odd;
    x[p - s] = even - odd;
    if (s == half) break;
    x[s + 1] = next_even + next_odd;
    x[p - s - 1] = next_even - next_odd;
  }
}

template <class T, int radix>
FLASHMIX_INLINE void butterfly(Complex<T>* y) {
  if constexpr (radix == 2)
    Butterfly<T>::two(y);
  else if constexpr (radix == 4)
    Butterfly<T>::four(y[0], y[1], y[2], y[3]);
  else if constexpr (radix == 8)
    Butterfly<T>::eight(y);
  else
    Butterfly<T>::template odd<radix>(y);
}

// One level: forward from natural order to reversed digits, or backward the other way. Backward
// is forward with real and imaginary parts exchanged.
//
// A radix of zero is one that is known by the level alone.
template <class T, int unrolled, bool forward>
void fft_level(Complex<T>* x, const typename Plan<T>::Level& level) {
  using C = Complex<T>;
  constexpr int64_t most = unrolled ? unrolled : LARGEST_PRIME;
  const int64_t rest = level.rest, radix = unrolled ? unrolled : level.radix;
  const T* w = level.twiddles.data();
  for (int64_t j = 0; j < rest; ++j, w += 2 * (radix - 1)) {
    C y[most];
    for (int s = 0; s < radix; ++s) {
      y[s] = x[j + s * rest];
      if (!forward) {
        y[s] = {y[s].im, y[s].re};
        if (s && rest > 1) y[s] = y[s].times(w[2 * s - 2], w[2 * s - 1]);
      }
    }
    if constexpr (unrolled) {
      butterfly<T, unrolled>(y);
    } else {
      C sums[most];
      any_odd(y, radix, level.wave.data(), sums);
    }
    for (int s = 0; s < radix; ++s) {
      if (!forward)
        y[s] = {y[s].im, y[s].re};
      else if (s && rest > 1)
        y[s] = y[s].times(w[2 * s - 2], w[2 * s - 1]);
      x[j + s * rest] = y[s];
    }
  }
}

template <class T, bool forward>
void fft_levels(Complex<T>* x, const Plan<T>& plan, size_t depth = 0) {
  if (depth == plan.levels.size()) return;
  const auto& level = plan.levels[depth];
  if (!forward)
    for (int64_t s = 0; s < level.radix; ++s)
      fft_levels<T, forward>(x + s * level.rest, plan, depth + 1);
  switch (level.radix) {
    case 2: fft_level<T, 2, forward>(x, level); break;
    case 3: fft_level<T, 3, forward>(x, level); break;
    case 4: fft_level<T, 4, forward>(x, level); break;
    case 5: fft_level<T, 5, forward>(x, level); break;
    case 7: fft_level<T, 7, forward>(x, level); break;
    case 8: fft_level<T, 8, forward>(x, level); break;
    case 11: fft_level<T, 11, forward>(x, level); break;
    case 13: fft_level<T, 13, forward>(x, level); break;
    case 17: fft_level<T, 17, forward>(x, level); break;
    case 19: fft_level<T, 19, forward>(x, level); break;
    default: fft_level<T, 0, forward>(x, level);
  }
  if (forward)
    for (int64_t s = 0; s < level.radix; ++s)
      fft_levels<T, forward>(x + s * level.rest, plan, depth + 1);
}

// Forward transforms x[0 .. n); backward undoes it but for a factor of n.
template <class T, bool forward = true>
void fft(Complex<T>* x, const Plan<T>& plan) {
  using C = Complex<T>;
  if (!plan.longer) return fft_levels<T, forward>(x, plan);
  int64_t n = plan.n, m = plan.longer->n;
  const T *wave = plan.wave.data(), *filter = plan.filter.data();
  C* z = reinterpret_cast<C*>(scratch<typename Lanes<T>::V, 1>(2 * m));
  for (int64_t t = 0; t < n; ++t)
    z[t] = (forward ? x[t] : C{x[t].im, x[t].re}).times(wave[2 * t], wave[2 * t + 1]);
  std::fill_n(z + n, m - n, C{});
  fft_levels<T, true>(z, *plan.longer);
  for (int64_t k = 0; k < m; ++k) z[k] = z[k].times(filter[2 * k], filter[2 * k + 1]);
  fft_levels<T, false>(z, *plan.longer);
  for (int64_t k = 0; k < n; ++k) {
    C value = z[k].times(wave[2 * k], wave[2 * k + 1]);
    x[k] = forward ? value : C{value.im, value.re};
  }
}

template <class T>
void Plan<T>::convolve() {
  int64_t m = INT64_MAX;  // the cheapest of the next lengths: all but one or two factors are 2
  for (int64_t odd : {1, 3, 5, 9, 15}) {
    int64_t next = odd;
    while (next < 2 * n - 1) next *= 2;
    m = std::min(m, next);
  }
  longer = plan_of<T>(m);
  std::vector<Complex<double>> z(m, Complex<double>{});
  for (int64_t t = 0; t < n; ++t) {
    place[t] = t;
    double angle = M_PI * double(t * t % (2 * n)) / double(n);
    double re = std::cos(angle), im = std::sin(angle);
    wave.push_back(T(re));
    wave.push_back(T(-im));
    z[t].re += re;
    z[t].im += im;
    if (t) z[m - t] = z[t];
  }
  fft_levels<double, true>(z.data(), *plan_of<double>(m));
  for (const Complex<double>& value : z) {
    filter.push_back(T(value.re[0] / double(m)));
    filter.push_back(T(value.im[0] / double(m)));
  }
}

}  // namespace flashmix
