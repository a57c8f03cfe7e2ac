// FNet mixing, Y = Re(FFT2(x)), of the sequences of x [.., D] in two passes over memory.
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
// those of other sequences: of columns, sequences of the same length; of rows, all.

#include <algorithm>
#include <numeric>

#include "fft.h"
#include "parallel.h"
#include "sequences.h"
#include "shuffle.h"
#include "slots.h"

namespace flashmix {
namespace {

// How lines of sequences fill lanes, two a lane, and lanes fill vectors: first the `whole` lanes of
// every sequence, whose vectors hold 2 W lines in order, then the `left` other lanes of all, which
// share vectors. Where a count of lines is odd, the last lane of its sequence holds one line.
template <int W>
class Lines {
 public:
  struct Of {  // one sequence
    int64_t count, whole, left, first_whole, first_left;
  };
  struct Lane {
    int64_t sequence, line[2];  // the second may be the sequence's count: no line
  };

  // Lanes of a sequence that is `apart` share no vector with those added before.
  void add(int64_t count, bool apart) {
    if (apart) lefts = (lefts + W - 1) / W * W;
    int64_t whole = count / (2 * W) * W, left = (count + 1) / 2 - whole;
    all.push_back({count, whole, left, wholes, lefts});
    wholes += whole;
    lefts += left;
  }
  const Of& operator[](int64_t sequence) const { return all[sequence]; }
  int64_t vectors() const { return (wholes + lefts + W - 1) / W; }
  bool shared(int64_t vector) const { return vector * W >= wholes; }

  // The lanes of a vector, in order: how many.
  int64_t lanes(int64_t vector, Lane* set) const {
    int64_t id = vector * W, size = 0;
    if (!shared(vector)) {
      auto after = [](int64_t id, const Of& of) { return id < of.first_whole; };
      auto of = std::upper_bound(all.begin(), all.end(), id, after) - 1;
      int64_t line = 2 * (id - of->first_whole);
      for (; size < W; ++size) set[size] = {of - all.begin(), {line + size, line + size + W}};
      return size;
    }
    id -= wholes;
    auto after = [](int64_t id, const Of& of) { return id < of.first_left; };
    auto of = std::upper_bound(all.begin(), all.end(), id, after) - 1;
    for (; size < W && of != all.end(); ++of) {
      if (of->first_left > id + size) break;  // it begins a vector
      for (; size < W && id + size < of->first_left + of->left; ++size) {
        int64_t line = 2 * of->whole + id + size - of->first_left;
        set[size] = {of - all.begin(), {line, line + of->left}};
      }
    }
    return size;
  }

  // Where lines begin: halves of vectors are numbered 2 vector + part.
  struct Slot {
    int64_t half, lane;
  };
  Slot whole(int64_t sequence, int64_t line) const {
    return {(2 * all[sequence].first_whole + line) / W, line % W};
  }
  Slot left(int64_t sequence, int64_t lane, int64_t part) const {
    int64_t id = wholes + all[sequence].first_left + lane;
    return {id / W * 2 + part, id % W};
  }

 private:
  std::vector<Of> all;
  int64_t wholes = 0, lefts = 0;
};

template <class T>
struct FNet {
  const Shape& shape;
  bool ortho;
  const T* x;
  T* y;

  using L = Lanes<T>;
  using V = typename L::V;
  using I = typename L::I;
  using C = Complex<T>;
  static constexpr int64_t W = L::W;
  using Lane = typename Lines<W>::Lane;

  struct One {
    Sequence tokens;
    std::shared_ptr<const Plan<T>> plan;
    T scale;
  };

  int64_t dim = shape.width, columns_each = dim / 2 + 1;
  Sequences sequences{shape};
  Strides at{shape.tokens * dim, 0, dim};
  std::vector<One> all;  // that have tokens, by their length
  Lines<W> columns, rows;
  std::shared_ptr<const Plan<T>> over_width = plan_of<T>(dim);
  std::unique_ptr<T[]> spectrum;  // [2 vectors of rows][columns][re, im][W]

  FNet(const Shape& shape, bool ortho, const T* x, T* y) : shape(shape), ortho(ortho), x(x), y(y) {
    for (int64_t s = 0; s < sequences.size(); ++s)
      if (sequences[s].length) all.push_back({sequences[s], nullptr, T(1)});
    std::stable_sort(all.begin(), all.end(), [](const One& a, const One& b) {
      return a.tokens.length > b.tokens.length;
    });
    int64_t before = 0;
    for (size_t i = 0; i < all.size(); ++i) {
      int64_t n = all[i].tokens.length;
      all[i].plan = n == before ? all[i - 1].plan : plan_of<T>(n);
      if (ortho) all[i].scale = T(1 / std::sqrt(double(n) * double(dim)));
      columns.add(columns_each, n != before);
      rows.add(n / 2 + 1, false);
      before = n;
    }
    spectrum.reset(new T[rows.vectors() * 2 * columns_each * 2 * W]);
  }

  void run() const {
    Shares over_columns, over_rows;
    Lane lanes[W] = {};
    for (int64_t i = 0; i < columns.vectors(); ++i) {
      columns.lanes(i, lanes);
      const One& one = all[lanes[0].sequence];
      over_columns.add(one.plan->cost() + 64 * one.tokens.length);
    }
    over_columns.run([&](int64_t i) { tokens(i); });
    for (int64_t i = 0; i < rows.vectors(); ++i) over_rows.add(over_width->cost() + 64 * dim);
    if (sequences.any_padding())
      for (int64_t s = 0; s < sequences.size(); ++s)
        over_rows.add((shape.tokens - sequences[s].length) * dim / W);
    over_rows.run([&](int64_t i) {
      i < rows.vectors() ? width(i) : zeros(i - rows.vectors());
    });
  }

  void zeros(int64_t s) const {
    T* row = y + sequences[s].row * at.batch;
    sequences.each_padding(s, [&](int64_t t) { std::fill_n(row + t * dim, dim, T(0)); });
  }

  T* cell(int64_t half, int64_t column) const {
    return spectrum.get() + (half * columns_each + column) * 2 * W;
  }

  // x[t, d .. d + W) + x[-t, -d .. -d - W), of one sequence.
  static V folded(const T* at, const T* across, int64_t dim, int64_t d) {
    if (d) return L::load(at + d) + reversed<T>(L::load(across + dim - d - W + 1));
    V last = mirrored<T>(L::load(across + dim - W));
    last[0] = across[0];
    return L::load(at) + last;
  }

  // The first pass, of one vector of lanes.
  void tokens(int64_t vector) const {
    Lane lanes[W] = {};
    int64_t size = columns.lanes(vector, lanes);
    const One& one = all[lanes[0].sequence];
    int64_t n = one.tokens.length;
    C* z = reinterpret_cast<C*>(scratch<V>(2 * n));
    T factor = one.scale / 4;  // halves of the fold and of the separation below
    bool single = false;
    if (columns.shared(vector)) {
      std::fill_n(z, n, C{});
      single = columns[lanes[0].sequence].left == 1 && columns_each % 2;
      for (int64_t i = 0; i < size; ++i)
        for (int p = 0; p < 2; ++p)
          if (lanes[i].line[p] < columns_each) fold(z, lanes[i], p, i, factor);
    } else {
      Rows<const T> row(one.tokens, x, at);
      int64_t d = lanes[0].line[0];
      for (int64_t t = 0; t < n; ++t) {
        const T *at = row(t), *across = row(t ? n - t : 0);
        z[t] = C{folded(at, across, dim, d), folded(at, across, dim, d + W)} * factor;
      }
    }
    fft(z, *one.plan);
    single ? store<1>(z, *one.plan, lanes, size) : store<2>(z, *one.plan, lanes, size);
  }

  // One column, into one lane.
  void fold(C* z, const Lane& lane, int part, int64_t i, T factor) const {
    const Sequence& tokens = all[lane.sequence].tokens;
    Rows<const T> row(tokens, x, at);
    int64_t d = lane.line[part], mirror = d ? dim - d : 0;
    for (int64_t t = 0; t < tokens.length; ++t)
      (part ? z[t].im : z[t].re)[i] =
          (row(t)[d] + row(t ? tokens.length - t : 0)[mirror]) * factor;
  }

  // The rows of transforms of lanes with one or two columns.
  template <int parts>
  void store(const C* z, const Plan<T>& plan, const Lane* lanes, int64_t size) const {
    const auto& of = rows[lanes[0].sequence];  // as of every sequence with lanes in here
    V block[4][W] = {};
    // use(half, lane i, its column, its part of the block)
    auto each = [&](const auto& use) {
      for (int p = 0; p < 2 * parts; ++p) transpose<T>(block[p]);
      for (int64_t i = 0; i < size; ++i)
        for (int p = 0; p < 2 * parts; ++p)
          if (lanes[i].line[p / 2] < columns_each)
            use(lanes[i].sequence, lanes[i].line[p / 2], p % 2 * W, block[p][i]);
    };
    auto fill = [&](int64_t i, int64_t k) {
      V one[4];
      separate(z, plan, k, one);
      for (int p = 0; p < 2 * parts; ++p) block[p][i] = one[p];
    };
    for (int64_t k = 0; k < 2 * of.whole; k += W) {
      for (int64_t i = 0; i < W; ++i) fill(i, k + i);
      each([&](int64_t sequence, int64_t d, int64_t part, V line) {
        L::store(cell(rows.whole(sequence, k).half, d) + part, line);
      });
    }
    for (int64_t half = 0; half < 2; ++half) {
      int64_t k = 2 * of.whole + half * of.left, count = std::min(of.left, of.count - k);
      if (count <= FEW) {
        for (int64_t r = 0; r < count; ++r) {
          V one[4];
          separate(z, plan, k + r, one);
          for (int64_t i = 0; i < size; ++i) {
            auto [slot, lane] = rows.left(lanes[i].sequence, r, half);
            for (int p = 0; p < parts; ++p) {
              if (lanes[i].line[p] >= columns_each) continue;
              T* to = cell(slot, lanes[i].line[p]) + lane;
              to[0] = one[2 * p][i];
              to[W] = one[2 * p + 1][i];
            }
          }
        }
        continue;
      }
      for (int64_t i = 0; i < count; ++i) fill(i, k + i);
      each([&](int64_t sequence, int64_t d, int64_t part, V line) {
        auto [slot, lane] = rows.left(sequence, 0, half);
        int64_t here = std::min(count, W - lane);
        T* to = cell(slot, d) + part;
        L::store_some(to + lane, line, 0, here);
        if (here < count) L::store_some(cell(slot + 2, d) + part - here, line, here, count);
      });
    }
  }
  static constexpr int64_t FEW = 2;  // rows that are stored number by number

  // Row k of the transforms, doubled, of the columns in z's real part (real and imaginary part)
  // and of those in its imaginary part.
  static void separate(const C* z, const Plan<T>& plan, int64_t k, V* parts) {
    const C &at = z[plan.place[k]], &across = z[plan.place[k ? plan.n - k : 0]];
    parts[0] = at.re + across.re;
    parts[1] = at.im - across.im;
    parts[2] = at.im + across.im;
    parts[3] = across.re - at.re;
  }

  // The second pass, of one vector of lanes.
  void width(int64_t vector) const {
    Lane lanes[W];
    int64_t size = rows.lanes(vector, lanes);
    bool two = false, full = true;
    I set[2] = {};
    for (int64_t i = 0; i < size; ++i) {
      bool both = lanes[i].line[1] < rows[lanes[i].sequence].count;
      set[0][i] = -1;
      set[1][i] = both ? -1 : 0;
      two = two || both;
      full = full && both;
    }
    full = full && size == W;
    C* z = reinterpret_cast<C*>(scratch<V>(2 * dim));
    for (int64_t d = 0; d < columns_each; ++d) {
      const T* at = cell(2 * vector, d);
      V a = L::load(at), b = L::load(at + W), c = {}, e = {};
      if (two) {
        const T* other = cell(2 * vector + 1, d);
        c = L::load(other), e = L::load(other + W);
      }
      if (!full) {  // nothing was stored there
        a = set[0] ? a : V{}, b = set[0] ? b : V{};
        c = set[1] ? c : V{}, e = set[1] ? e : V{};
      }
      int64_t mirror = d ? dim - d : 0;
      if (mirror == d) b = e = V{};
      z[d] = {a - e, b + c};
      z[mirror] = {a + e, c - b};
    }
    fft(z, *over_width);
    two ? write_rows<2>(z, lanes, size) : write_rows<1>(z, lanes, size);
  }

  template <int parts>
  void write_rows(const C* z, const Lane* lanes, int64_t size) const {
    T *to[parts][W], *across[parts][W];
    for (int64_t i = 0; i < size; ++i) {
      const Sequence& tokens = all[lanes[i].sequence].tokens;
      Rows<T> row(tokens, y, at);
      int64_t n = tokens.length;
      for (int p = 0; p < parts; ++p) {
        int64_t k = lanes[i].line[p];
        bool one = k < n / 2 + 1;
        to[p][i] = one ? row(k) : nullptr;
        across[p][i] = one && k && 2 * k != n ? row(n - k) : nullptr;
      }
    }
    const int64_t* place = over_width->place.data();
    int64_t j0 = 0;
    for (; j0 + W <= dim; j0 += W)
      for (int p = 0; p < parts; ++p) {
        V block[W];
        for (int64_t i = 0; i < W; ++i) block[i] = part(z[place[j0 + i]], p);
        transpose<T>(block);
        for (int64_t i = 0; i < size; ++i) write(block[i], j0, to[p][i], across[p][i]);
      }
    for (; j0 < dim; ++j0)
      for (int p = 0; p < parts; ++p)
        for (int64_t i = 0; i < size; ++i) {
          T number = part(z[place[j0]], p)[i];
          if (to[p][i]) to[p][i][j0] = number;
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

FLASHMIX_EXPORT int fnet_f32(const flashmix::Shape* shape, bool ortho, const float* x, float* y) {
  return flashmix::guarded([&] { flashmix::FNet<float>(*shape, ortho, x, y).run(); });
}

FLASHMIX_EXPORT int fnet_f64(const flashmix::Shape* shape, bool ortho, const double* x, double* y) {
  return flashmix::guarded([&] { flashmix::FNet<double>(*shape, ortho, x, y).run(); });
}

FLASHMIX_SLOTS(fnet_f32)
FLASHMIX_SLOTS(fnet_f64)
