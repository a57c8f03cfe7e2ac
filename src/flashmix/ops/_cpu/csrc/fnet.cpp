// FNet mixing, Y = Re(FFT2(x)), of [B, N, D] in two passes over memory.
//
// Y depends on x only through its even part e[n, d] = (x[n, d] + x[-n, -d]) / 2, whose transform E
// over tokens has E[-k, d] = conj E[k, d] = E[k, -d]. So the columns d <= D / 2 and of each only
// the rows k <= N / 2 are enough, and Y[-k, -j] = Y[k, j] gives the other rows.
//
// The first pass folds two vectors of columns, transforms them over tokens as real and imaginary
// part of one sequence, separates them and stores rows transposed so that the second pass, which
// takes two vectors of rows, finds them lane by lane.
//
// Roundings and NaN pass between a real and an imaginary part, never between lanes. So both lines
// of a lane are of one sequence, the same two in every batch, and only lanes are filled up with
// those of other sequences.

#include <algorithm>

#include "fft.h"
#include "parallel.h"
#include "shuffle.h"

namespace flashmix {
namespace {

// How `count` lines of each of `batch` sequences fill lanes, two a lane, and lanes fill vectors:
// first the `whole` lanes of every sequence, whose vectors hold 2 W lines in order, then the `left`
// other lanes of all sequences. Where the count is odd the last lane of a sequence holds one line.
struct Lines {
  int64_t batch, count, W, whole, left;

  Lines(int64_t batch, int64_t count, int64_t W)
      : batch(batch), count(count), W(W), whole(count / (2 * W) * W),
        left((count + 1) / 2 - whole) {}
  int64_t vectors() const { return (batch * (whole + left) + W - 1) / W; }
  bool shared(int64_t vector) const { return vector * W >= batch * whole; }
  // Whether shared vectors hold one line a lane; all others hold two.
  bool single() const { return left == 1 && count % 2; }

  struct Lane {
    int64_t sequence, line[2];  // the second may be `count`: no line
  };
  Lane lane(int64_t id) const {
    if (id < batch * whole) {
      int64_t line = id % whole / W * 2 * W + id % W;
      return {id / whole, {line, line + W}};
    }
    id -= batch * whole;
    int64_t line = 2 * whole + id % left;
    return {id / left, {line, line + left}};
  }
  // The lanes of a vector; `size` are set.
  int64_t lanes(int64_t vector, Lane* set) const {
    int64_t size = std::min(W, batch * (whole + left) - vector * W);
    for (int64_t i = 0; i < size; ++i) set[i] = lane(vector * W + i);
    return size;
  }

  struct Slot {
    int64_t half, lane;  // halves of vectors are numbered 2 vector + part
  };
  Slot slot(int64_t sequence, int64_t line) const {
    if (line < 2 * whole) return {(sequence * 2 * whole + line) / W, line % W};
    line -= 2 * whole;
    int64_t id = batch * whole + sequence * left + line % left;
    return {id / W * 2 + line / left, id % W};
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
  using C = Complex<T>;
  static constexpr int64_t W = L::W;

  Lines columns{batch, dim / 2 + 1, W};
  Lines rows{batch, n / 2 + 1, W};
  std::shared_ptr<const Plan<T>> over_tokens = plan_of<T>(n),
                                 over_width = plan_of<T>(dim);
  // [2 vectors of rows][columns][re, im][W]
  std::unique_ptr<T[]> spectrum{new T[rows.vectors() * 2 * columns.count * 2 * W]};

  void run() const {
    // Lanes without a row are transformed too: whatever memory held there could be slow.
    if (rows.left)
      std::fill(cell(2 * rows.vectors() - 2, 0), cell(2 * rows.vectors(), 0), T(0));
    parallel(columns.vectors(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        columns.shared(i) && columns.single() ? tokens<1>(i) : tokens<2>(i);
    });
    parallel(rows.vectors(), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        rows.shared(i) && rows.single() ? width<1>(i) : width<2>(i);
    });
  }

  T* cell(int64_t half, int64_t column) const {
    return spectrum.get() + (half * columns.count + column) * 2 * W;
  }

  // x[t, d .. d + W) + x[-t, -d .. -d - W), of one sequence.
  static V folded(const T* at, const T* across, int64_t dim, int64_t d) {
    if (d) return L::load(at + d) + reversed<T>(L::load(across + dim - d - W + 1));
    V last = mirrored<T>(L::load(across + dim - W));
    last[0] = across[0];
    return L::load(at) + last;
  }

  // The first pass, of lanes with one or two columns.
  template <int parts>
  void tokens(int64_t vector) const {
    Lines::Lane lanes[W];
    int64_t size = columns.lanes(vector, lanes);
    C* z = reinterpret_cast<C*>(scratch<V>(2 * n));
    T factor = scale / 4;  // halves of the fold and of the separation below
    if (columns.shared(vector)) {
      std::fill_n(z, n, C{});
      for (int64_t i = 0; i < size; ++i)
        for (int p = 0; p < parts; ++p)
          if (lanes[i].line[p] < columns.count) fold(z, lanes[i], p, i, factor);
    } else {
      const T* sequence = x + lanes[0].sequence * n * dim;
      int64_t d = lanes[0].line[0];
      for (int64_t t = 0; t < n; ++t) {
        const T *at = sequence + t * dim, *across = sequence + (t ? n - t : 0) * dim;
        z[t] = C{folded(at, across, dim, d), folded(at, across, dim, d + W)} * factor;
      }
    }
    fft(z, *over_tokens);

    const int64_t* place = over_tokens->place.data();
    for (int64_t k0 = 0; k0 < 2 * rows.whole; k0 += W) {
      V block[2 * parts][W];
      for (int64_t i = 0; i < W; ++i) {
        V one[4];
        separate(z, place, k0 + i, one);
        for (int p = 0; p < 2 * parts; ++p) block[p][i] = one[p];
      }
      for (int p = 0; p < 2 * parts; ++p) {
        transpose<T>(block[p]);
        for (int64_t i = 0; i < size; ++i) {
          int64_t d = lanes[i].line[p / 2];
          if (d < columns.count)
            L::store(cell(rows.slot(lanes[i].sequence, k0).half, d) + p % 2 * W, block[p][i]);
        }
      }
    }
    // The last lane of an odd count of rows holds zeros as its second one.
    int64_t end = rows.single() ? rows.count : 2 * (rows.whole + rows.left);
    for (int64_t k = 2 * rows.whole; k < end; ++k) {
      V one[4] = {};
      if (k < rows.count) separate(z, place, k, one);
      for (int64_t i = 0; i < size; ++i) {
        auto [half, lane] = rows.slot(lanes[i].sequence, k);
        for (int p = 0; p < parts; ++p) {
          if (lanes[i].line[p] >= columns.count) continue;
          T* at = cell(half, lanes[i].line[p]) + lane;
          at[0] = one[2 * p][i];
          at[W] = one[2 * p + 1][i];
        }
      }
    }
  }

  // One column, into one lane.
  void fold(C* z, const Lines::Lane& lane, int part, int64_t i, T factor) const {
    const T* sequence = x + lane.sequence * n * dim;
    int64_t d = lane.line[part], mirror = d ? dim - d : 0;
    for (int64_t t = 0; t < n; ++t) {
      const T *at = sequence + t * dim, *across = sequence + (t ? n - t : 0) * dim;
      (part ? z[t].im : z[t].re)[i] = (at[d] + across[mirror]) * factor;
    }
  }

  // Row k of the transforms, doubled, of the columns in z's real part (real and imaginary part)
  // and of those in its imaginary part.
  void separate(const C* z, const int64_t* place, int64_t k, V* parts) const {
    const C &at = z[place[k]], &across = z[place[k ? n - k : 0]];
    parts[0] = at.re + across.re;
    parts[1] = at.im - across.im;
    parts[2] = at.im + across.im;
    parts[3] = across.re - at.re;
  }

  // The second pass, of lanes with one or two rows.
  template <int parts>
  void width(int64_t vector) const {
    C* z = reinterpret_cast<C*>(scratch<V>(2 * dim));
    for (int64_t d = 0; d < columns.count; ++d) {
      const T* at = cell(2 * vector, d);
      V a = L::load(at), b = L::load(at + W), c = {}, e = {};
      if (parts == 2) {
        const T* other = cell(2 * vector + 1, d);
        c = L::load(other), e = L::load(other + W);
      }
      int64_t mirror = d ? dim - d : 0;
      if (mirror == d) b = e = V{};
      z[d] = {a - e, b + c};
      z[mirror] = {a + e, c - b};
    }
    fft(z, *over_width);

    T *at[parts][W], *across[parts][W];
    Lines::Lane lanes[W];
    int64_t size = rows.lanes(vector, lanes);
    for (int64_t i = 0; i < size; ++i)
      for (int p = 0; p < parts; ++p) {
        int64_t k = lanes[i].line[p];
        T* sequence = y + lanes[i].sequence * n * dim;
        at[p][i] = k < rows.count ? sequence + k * dim : nullptr;
        across[p][i] = k < rows.count && k && 2 * k != n ? sequence + (n - k) * dim : nullptr;
      }
    const int64_t* place = over_width->place.data();
    int64_t j0 = 0;
    for (; j0 + W <= dim; j0 += W)
      for (int p = 0; p < parts; ++p) {
        V block[W];
        for (int64_t i = 0; i < W; ++i) block[i] = part(z[place[j0 + i]], p);
        transpose<T>(block);
        for (int64_t i = 0; i < size; ++i) write(block[i], j0, at[p][i], across[p][i]);
      }
    for (; j0 < dim; ++j0)
      for (int p = 0; p < parts; ++p)
        for (int64_t i = 0; i < size; ++i) {
          T number = part(z[place[j0]], p)[i];
          if (at[p][i]) at[p][i][j0] = number;
          if (across[p][i]) across[p][i][j0 ? dim - j0 : 0] = number;
        }
  }

  static V part(const C& value, int p) { return p ? value.im : value.re; }

  // Columns j .. j + W of a row, and of the row that mirrors it, if there is one.
  void write(V line, int64_t j, T* at, T* across) const {
    if (at) L::store(at + j, line);
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
