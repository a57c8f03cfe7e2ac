// FNet mixing, Y = Re(FFT2(x)), of [B, N, D] in two passes over memory.
//
// Y depends on x only through its even part e[n, d] = (x[n, d] + x[-n, -d]) / 2, whose transform E
// over tokens has E[-k, d] = conj E[k, d] = E[k, -d]. So the columns d <= D / 2 and of each only
// the rows k <= N / 2 are enough, and Y[-k, -j] = Y[k, j] gives the other rows.
//
// The first pass folds two vectors of columns, transforms them over tokens as real and imaginary
// part of one sequence, parts them and stores rows turned so that the second pass, which takes two
// vectors of rows, finds them lane by lane. Columns (and rows) that fill no vector of their own
// sequence share vectors with those of others.

#include <algorithm>
#include <tuple>

#include "fft.h"
#include "parallel.h"
#include "shuffle.h"

namespace flashmix {
namespace {

// How `count` lines of each of `batch` sequences fill pairs of vectors: the first `whole` of every
// sequence in order, then what is left of all sequences.
struct Lines {
  int64_t batch, count, pair, whole, left;

  Lines(int64_t batch, int64_t count, int64_t pair)
      : batch(batch), count(count), pair(pair), whole(count / pair * pair), left(count - whole) {}
  int64_t pairs() const { return (batch * count + pair - 1) / pair; }
  int64_t id(int64_t b, int64_t line) const {
    return line < whole ? b * whole + line : batch * whole + b * left + line - whole;
  }
  // The sequence and the line with this id; ids beyond the end repeat the last one.
  std::pair<int64_t, int64_t> at(int64_t id) const {
    if (id < batch * whole) return {id / whole, id % whole};
    id = std::min(id, batch * count - 1) - batch * whole;
    return {id / left, whole + id % left};
  }
};

template <class T>
struct FNet {
  int64_t batch, n, dim;
  const T* x;
  T* y;
  T scale;

  using L = Lanes<T>;
  using V = typename L::V;
  static constexpr int64_t W = L::W;

  Lines columns{batch, dim / 2 + 1, 2 * W};
  Lines rows{batch, n / 2 + 1, 2 * W};
  std::shared_ptr<const Plan<T>> over_tokens = plan_of<T>(n),
                                 over_width = plan_of<T>(dim);
  // [row id / W][columns][re, im][W]
  std::unique_ptr<T[]> spectrum{new T[rows.pairs() * 2 * columns.count * 2 * W]};

  void run() const {
    // Lanes without a row ride along with real ones, so they must hold what does no harm.
    int64_t last = (rows.pairs() - 1) * 2 * W;
    std::fill(cell(last, 0), cell(last + 2 * W, 0), T(0));
    parallel(columns.pairs(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tokens(i * 2 * W);
    });
    parallel(rows.pairs(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) width(i * 2 * W);
    });
  }

  T* cell(int64_t row_id, int64_t column) const {
    return spectrum.get() + (row_id / W * columns.count + column) * 2 * W;
  }

  // x[t, d .. d + W) + x[-t, -d .. -d - W), of one sequence.
  static V folded(const T* at, const T* across, int64_t dim, int64_t d) {
    if (d) return L::load(at + d) + reversed<T>(L::load(across + dim - d - W + 1));
    V last = mirrored<T>(L::load(across + dim - W));
    last[0] = across[0];
    return L::load(at) + last;
  }

  void tokens(int64_t first) const {
    int64_t b[2 * W], d[2 * W], count = std::min(2 * W, batch * columns.count - first);
    for (int64_t i = 0; i < count; ++i) std::tie(b[i], d[i]) = columns.at(first + i);
    Complex<T>* z = reinterpret_cast<Complex<T>*>(scratch<V>(2 * n));
    T factor = scale / 4;  // halves of the fold and of the parting below
    if (first < batch * columns.whole) {
      for (int64_t t = 0; t < n; ++t) {
        const T* at = x + (b[0] * n + t) * dim;
        const T* across = x + (b[0] * n + (t ? n - t : 0)) * dim;
        z[t] = Complex<T>{folded(at, across, dim, d[0]), folded(at, across, dim, d[W])} * factor;
      }
    } else {
      for (int64_t t = 0; t < n; ++t) {
        T lanes[2 * W] = {};
        for (int64_t i = 0; i < count; ++i) {
          const T* at = x + (b[i] * n + t) * dim;
          const T* across = x + (b[i] * n + (t ? n - t : 0)) * dim;
          lanes[i] = (at[d[i]] + across[d[i] ? dim - d[i] : 0]) * factor;
        }
        z[t] = {L::load(lanes), L::load(lanes + W)};
      }
    }
    fft(z, *over_tokens);

    const int64_t* place = over_tokens->place.data();
    for (int64_t k0 = 0; k0 < rows.whole; k0 += W) {
      V parts[4][W];
      for (int64_t i = 0; i < W; ++i) {
        V one[4];
        parted(z, place, k0 + i, one);
        for (int p = 0; p < 4; ++p) parts[p][i] = one[p];
      }
      for (int p = 0; p < 4; ++p) {
        transpose<T>(parts[p]);
        for (int64_t i = 0; i < std::min(W, count - p / 2 * W); ++i) {
          int64_t lane = p / 2 * W + i;
          L::store(cell(rows.id(b[lane], k0), d[lane]) + p % 2 * W, parts[p][i]);
        }
      }
    }
    for (int64_t k = rows.whole; k < rows.count; ++k) {
      V parts[4];
      parted(z, place, k, parts);
      for (int64_t lane = 0; lane < count; ++lane) {
        int64_t id = rows.id(b[lane], k);
        T* at = cell(id, d[lane]) + id % W;
        at[0] = parts[lane / W * 2][lane % W];
        at[W] = parts[lane / W * 2 + 1][lane % W];
      }
    }
  }

  // Row k of the transforms, doubled, of the columns in z's real part (real and imaginary part)
  // and of those in its imaginary part.
  void parted(const Complex<T>* z, const int64_t* place, int64_t k, V* parts) const {
    const Complex<T>&at = z[place[k]], &across = z[place[k ? n - k : 0]];
    parts[0] = at.re + across.re;
    parts[1] = at.im - across.im;
    parts[2] = at.im + across.im;
    parts[3] = across.re - at.re;
  }

  void width(int64_t first) const {
    Complex<T>* z = reinterpret_cast<Complex<T>*>(scratch<V>(2 * dim));
    for (int64_t d = 0; d < columns.count; ++d) {
      const T *one = cell(first, d), *other = cell(first + W, d);
      V a = L::load(one), b = L::load(one + W), c = L::load(other), e = L::load(other + W);
      int64_t mirror = d ? dim - d : 0;
      if (mirror == d) b = e = V{};
      z[d] = {a - e, b + c};
      z[mirror] = {a + e, c - b};
    }
    fft(z, *over_width);

    T *at[2 * W], *across[2 * W];
    int64_t count = std::min(2 * W, batch * rows.count - first);
    for (int64_t i = 0; i < count; ++i) {
      auto [b, k] = rows.at(first + i);
      at[i] = y + (b * n + k) * dim;
      across[i] = k && 2 * k != n ? y + (b * n + n - k) * dim : nullptr;
    }
    const int64_t* place = over_width->place.data();
    int64_t j0 = 0;
    for (; j0 + W <= dim; j0 += W) {
      V parts[2][W];
      for (int64_t i = 0; i < W; ++i) {
        const Complex<T>& value = z[place[j0 + i]];
        parts[0][i] = value.re;
        parts[1][i] = value.im;
      }
      for (int p = 0; p < 2; ++p) {
        transpose<T>(parts[p]);
        for (int64_t i = 0; i < std::min(W, count - p * W); ++i)
          write(parts[p][i], j0, at[p * W + i], across[p * W + i]);
      }
    }
    for (; j0 < dim; ++j0)
      for (int64_t i = 0; i < count; ++i) {
        const Complex<T>& value = z[place[j0]];
        T number = i < W ? value.re[i] : value.im[i - W];
        at[i][j0] = number;
        if (across[i]) across[i][j0 ? dim - j0 : 0] = number;
      }
  }

  // Columns j .. j + W of a row, and of the row that mirrors it, if another one does.
  void write(V line, int64_t j, T* at, T* across) const {
    L::store(at + j, line);
    if (!across) return;
    if (j) {
      L::store(across + dim - j - W + 1, reversed<T>(line));
    } else {
      // Column 0 is its own mirror; what lands on dim - W meanwhile is overwritten in its turn.
      L::store(across + dim - W, mirrored<T>(line));
      across[0] = line[0];
    }
  }
};

// The real part of a whole transform from the columns j <= D / 2 of its complex numbers.
template <class T>
void mirror(int64_t batch, int64_t n, int64_t dim, const T* half, T* y) {
  int64_t columns = dim / 2 + 1;
  parallel(batch * n, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      int64_t b = i / n, k = i % n;
      const T* at = half + i * columns * 2;
      const T* across = half + (b * n + (k ? n - k : 0)) * columns * 2;
      T* row = y + i * dim;
      for (int64_t j = 0; j < columns; ++j) row[j] = at[2 * j];
      for (int64_t j = columns; j < dim; ++j) row[j] = across[2 * (dim - j)];
    }
  });
}

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int fnet_f32(int64_t batch, int64_t n, int64_t dim, double scale, const float* x,
                        float* y) {
  return flashmix::guarded([&] { flashmix::FNet<float>{batch, n, dim, x, y, float(scale)}.run(); });
}

FLASHMIX_EXPORT int fnet_f64(int64_t batch, int64_t n, int64_t dim, double scale, const double* x,
                        double* y) {
  return flashmix::guarded([&] { flashmix::FNet<double>{batch, n, dim, x, y, scale}.run(); });
}

FLASHMIX_EXPORT int fnet_mirror_f32(int64_t batch, int64_t n, int64_t dim, const float* half,
                                    float* y) {
  return flashmix::guarded([&] { flashmix::mirror(batch, n, dim, half, y); });
}

FLASHMIX_EXPORT int fnet_mirror_f64(int64_t batch, int64_t n, int64_t dim, const double* half,
                                    double* y) {
  return flashmix::guarded([&] { flashmix::mirror(batch, n, dim, half, y); });
}
