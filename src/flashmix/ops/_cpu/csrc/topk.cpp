// Exact top-k attention: a block of scores stays in cache, only its k largest ever leave it.
//
// P = batch * heads sequences of one head, N tokens, dh width of a head. Keys pass in chunks; the
// first chunk's k-th largest group maximum bounds its k-th largest score from below, so one more
// look at the scores finds the few candidates. Later chunks are held against the k-th score so far.

#include <algorithm>
#include <cmath>

#include "gemm.h"
#include "parallel.h"
#include "select.h"
#include "sequences.h"
#include "slots.h"

namespace flashmix {
namespace {

constexpr int64_t CHUNK = 2048;  // keys; a multiple of every PANEL
constexpr int64_t BLOCK = 2 * ROWS;      // queries that share a look at the keys
constexpr int64_t PACKED_BYTES = 4 << 20;  // of keys packed at once, or one head for each thread

template <class T>
struct TopK {
  const Shape& shape;
  int64_t topk;
  bool causal;
  const T *q, *k, *v;
  Strides at_q, at_k, at_v;
  T* y;            // [P, N, dh]
  int32_t* index;  // [P, N, k], -1 where fewer are kept; null to keep none
  T* weights;      // [P, N, k]
  Sequences sequences{shape};

  using Key = typename Ordered<T>::Int;

  const Sequence& sequence(int64_t p) const { return sequences[p / shape.heads]; }
  int64_t length(int64_t p) const { return sequence(p).length; }
  Rows<const T> rows(int64_t p, const T* x, const Strides& at) const {
    return {sequence(p), x, at, p % shape.heads};
  }

  int64_t queries_in(int64_t p, int64_t block) const {
    return std::min(BLOCK, length(p) - block * BLOCK);
  }

  // Memory of a thread that works on a block.
  struct Room {
    T *queries, *scores;
    Key *kept_keys, *keys;
    int32_t *kept_index, *index;
    T* share;

    static int64_t bytes(int64_t topk, int64_t dh) {
      int64_t wide = BLOCK * dh + BLOCK * CHUNK + BLOCK * topk + 2 * topk + CHUNK + 128;
      return wide * sizeof(T) + (BLOCK * topk + topk + CHUNK) * sizeof(int32_t);
    }
    Room(int64_t topk, int64_t dh) {
      queries = reinterpret_cast<T*>(scratch<char>(bytes(topk, dh)));
      scores = queries + BLOCK * dh;
      kept_keys = reinterpret_cast<Key*>(scores + BLOCK * CHUNK);
      keys = kept_keys + BLOCK * topk;
      share = reinterpret_cast<T*>(keys + topk + CHUNK + 64);
      kept_index = reinterpret_cast<int32_t*>(share + topk + 64);
      index = kept_index + BLOCK * topk;
    }
  };

  // A head of a sequence, and a panel or block of its tokens.
  struct Part {
    int64_t p, i;
  };

  void run() const {
    int64_t heads = shape.sequences(), dh = shape.width;
    int64_t one = round_up(shape.tokens, PANEL<T>) * dh;
    int64_t together = std::max<int64_t>(1, PACKED_BYTES / int64_t(one * sizeof(T)));
    together = std::min(together, heads);
    std::unique_ptr<T[]> packed(new T[together * one]);
    for (int64_t p0 = 0; p0 < heads; p0 += together) {
      Shares over_keys, over_queries;
      std::vector<Part> panels, blocks;
      for (int64_t p = p0; p < std::min(p0 + together, heads); ++p) {
        int64_t n = length(p);
        for (int64_t i = 0; i * PANEL<T> < n; ++i) panels.push_back({p, i}), over_keys.add(1);
        for (int64_t i = 0; i * BLOCK < n; ++i) {
          blocks.push_back({p, i});
          over_queries.add(queries_in(p, i) * ((causal ? i * BLOCK : n) + FIXED));
        }
        zeros(p);
      }
      over_keys.run([&](int64_t i) {
        int64_t p = panels[i].p, first = panels[i].i * PANEL<T>;
        Rows<const T> from = rows(p, k, at_k);
        pack_panel(packed.get() + (p - p0) * one + first * dh,
                   [&](int64_t j) { return from(first + j); },
                   std::min(PANEL<T>, length(p) - first), dh, T(1));
      });
      over_queries.run([&](int64_t i) {
        auto [p, block] = blocks[i];
        attend(p, block, packed.get() + (p - p0) * one, Room(topk, dh));
      });
    }
  }
  static constexpr int64_t FIXED = 200;  // keys that take as long as the rest of a query's work

  // Padding attends to nothing.
  void zeros(int64_t p) const {
    sequences.each_padding(p / shape.heads, [&](int64_t t) {
      int64_t row = p * shape.tokens + t;
      std::fill_n(y + row * shape.width, shape.width, T(0));
      if (!index) return;
      std::fill_n(index + row * topk, topk, -1);
      std::fill_n(weights + row * topk, topk, T(0));
    });
  }

  void attend(int64_t p, int64_t block, const T* packed, const Room& room) const {
    int64_t dh = shape.width, first = block * BLOCK, count = queries_in(p, block);
    Rows<const T> queries = rows(p, q, at_q);
    T scale = T(1) / std::sqrt(T(dh));
    for (int64_t r = 0; r < count; r += ROWS)
      pack_rows(room.queries + r * dh, [&](int64_t i) { return queries(first + r + i); },
                std::min<int64_t>(ROWS, count - r), dh, scale);
    int64_t kept[BLOCK] = {};
    int64_t seen = causal ? first + count : length(p);
    for (int64_t start = 0; start < seen; start += CHUNK) {
      int64_t width = std::min(CHUNK, seen - start);
      for (int64_t j = 0; j < width; j += PANEL<T>)
        for (int64_t r = 0; r < count; r += ROWS)
          tile(room.scores + r * CHUNK + j, CHUNK, room.queries + r * dh,
               packed + (start + j) * dh, dh);
      for (int64_t r = 0; r < count; ++r) {
        int64_t visible = causal ? std::min(width, first + r + 1 - start) : width;
        if (visible > 0) kept[r] = pass(room, r, kept[r], start, visible);
      }
    }
    for (int64_t r = 0; r < count; ++r) finish(p, first + r, room, r, kept[r]);
  }

  // Takes `n` scores of row r into what it keeps, and tells how many that are.
  int64_t pass(const Room& room, int64_t r, int64_t kept, int64_t start, int64_t n) const {
    constexpr int64_t W = Lanes<T>::W;
    T* scores = room.scores + r * CHUNK;
    std::copy_n(room.kept_keys + r * topk, kept, room.keys);
    std::copy_n(room.kept_index + r * topk, kept, room.index);
    Candidates<T> candidates{room.keys, room.index, kept};
    if (kept == topk) {
      candidates.template append<true>(scores, n, candidates.lowest(), start);
    } else {
      int64_t vectors = n / W, groups = std::min(vectors, (4 * topk + W - 1) / W);
      T bound = -INFINITY;
      if (n > topk && groups * W >= topk)
        bound = lower_bound(scores, vectors * W, topk, groups, room.keys + kept);
      candidates.template append<false>(scores, n, bound, start);
    }
    candidates.cut(topk);
    std::copy_n(room.keys, candidates.count, room.kept_keys + r * topk);
    std::copy_n(room.index, candidates.count, room.kept_index + r * topk);
    return candidates.count;
  }

  void finish(int64_t p, int64_t query, const Room& room, int64_t r, int64_t kept) const {
    int64_t dh = shape.width;
    const Key* keys = room.kept_keys + r * topk;
    const int32_t* ranks = room.kept_index + r * topk;
    using L = Lanes<T>;
    T highest = Ordered<T>::number(*std::max_element(keys, keys + kept)), total = 0;
    for (int64_t i = 0; i < kept; ++i) room.share[i] = Ordered<T>::number(keys[i]) - highest;
    for (int64_t i = 0; i < kept; i += L::W)
      L::store(room.share + i, exponential<T>(L::load(room.share + i)));
    for (int64_t i = 0; i < kept; ++i) total += room.share[i];
    for (int64_t i = 0; i < kept; ++i) room.share[i] /= total;
    int64_t row = sequences.place(p, shape.heads, query);
    Rows<const T> values = rows(p, v, at_v);
    weighted_sum(y + row * dh, kept, room.share, [&](int64_t i) { return values(ranks[i]); }, dh);
    if (!index) return;
    for (int64_t i = 0; i < topk; ++i) {
      index[row * topk + i] = i < kept ? int32_t(sequence(p).at(ranks[i])) : -1;
      weights[row * topk + i] = i < kept ? room.share[i] : T(0);
    }
  }
};

template <class T>
int topk_forward(const Shape& shape, int64_t topk, bool causal, const T* q,
                        const T* k, const T* v, const Strides* at, T* y, int32_t* index,
                        T* weights) {
  return guarded([&] {
    TopK<T>{shape, topk, causal, q, k, v, at[0], at[1], at[2], y, index, weights}.run();
  });
}

}  // namespace
}  // namespace flashmix

FLASHMIX_EXPORT int topk_forward_f32(const flashmix::Shape* shape, int64_t topk, bool causal,
                                const float* q, const float* k, const float* v,
                                const flashmix::Strides* at, float* y, int32_t* index,
                                float* weights) {
  return flashmix::topk_forward(*shape, topk, causal, q, k, v, at, y, index, weights);
}

FLASHMIX_EXPORT int topk_forward_f64(const flashmix::Shape* shape, int64_t topk, bool causal,
                                const double* q, const double* k, const double* v,
                                const flashmix::Strides* at, double* y, int32_t* index,
                                double* weights) {
  return flashmix::topk_forward(*shape, topk, causal, q, k, v, at, y, index, weights);
}

FLASHMIX_SLOTS(topk_forward_f32)
FLASHMIX_SLOTS(topk_forward_f64)
