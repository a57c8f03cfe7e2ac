// The k largest of many scores, ties to the lower index.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace flashmix {

// Integers in the order of the numbers; NaN above all, as torch.sort has it, and -0 equal to 0.
template <class T>
struct Ordered {
  using L = Lanes<T>;
  using Int = typename L::Int;
  using I = typename L::I;
  static constexpr Int HIGHEST = std::numeric_limits<Int>::max();
  static constexpr Int LOWEST = std::numeric_limits<Int>::min();

  static Int of(T x) {
    if (x != x) return HIGHEST;
    x += T(0);
    Int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits ^ ((bits >> (8 * sizeof(T) - 1)) & HIGHEST);
  }
  static I of(typename L::V x) {
    I bits = (I)(x + T(0));
    bits ^= (bits >> (8 * sizeof(T) - 1)) & HIGHEST;
    return x == x ? bits : I{} + HIGHEST;
  }
  static T number(Int key) {
    Int bits = key ^ ((key >> (8 * sizeof(T) - 1)) & HIGHEST);
    T x;
    memcpy(&x, &bits, sizeof x);
    return x;
  }
  // The largest bound that at least k of the keys reach, or a lower one that exactly k reach.
  // `count` is a multiple of W; fillers hold the lowest integer, which no number has.
  static Int kth(const Int* keys, int64_t count, int64_t k) {
    I highest = I{} + LOWEST, lowest = I{} + HIGHEST;
    for (int64_t i = 0; i < count; i += L::W) {
      I v = load(keys + i);
      highest = v > highest ? v : highest;
      I real = v == LOWEST ? I{} + HIGHEST : v;
      lowest = real < lowest ? real : lowest;
    }
    Int low = lowest[0], high = highest[0];
    for (int i = 1; i < L::W; ++i) {
      low = std::min<Int>(low, lowest[i]);
      high = std::max<Int>(high, highest[i]);
    }
    while (low < high) {
      Int middle = (low & high) + ((low ^ high) >> 1) + ((low ^ high) & 1);
      int64_t reached = 0;
      I bound = I{} + middle;
      for (int64_t i = 0; i < count; i += L::W) reached += L::count(load(keys + i), bound);
      low = reached < k ? low : middle;
      high = reached < k ? middle - 1 : high;
      if (reached == k) break;
    }
    return low;
  }

 private:
  static I load(const Int* p) {
    I v;
    memcpy(&v, p, sizeof v);
    return v;
  }
};

// What one query keeps while its scores pass by: `count` candidates in ascending order of index.
template <class T>
struct Candidates {
  using Key = typename Ordered<T>::Int;
  static constexpr int64_t W = Lanes<T>::W, MOST = 2048;

  Key* keys;  // room for W - 1 fillers beyond the last
  int32_t* index;
  int64_t count;

  // Appends those of scores[0 .. n) that reach `bound` (exceed it, if strict); reads up to the
  // next multiple of 64 of at most MOST. Finds them first and takes them then, since whether a
  // vector holds one is a branch that nobody can predict.
  template <bool strict>
  void append(const T* scores, int64_t n, T bound, int64_t first) {
    using L = Lanes<T>;
    uint64_t found[MOST / 64];
    int64_t words = (n + 63) / 64, hits = 0;
    typename L::V limit = L::all(bound);
    for (int64_t w = 0; w < words; ++w) {
      uint64_t word = 0;
#pragma GCC unroll 32
      for (int64_t i = 0; i < 64; i += W)
        word |= uint64_t(L::template reaches<strict>(L::load(scores + w * 64 + i), limit)) << i;
      found[w] = word;
    }
    if (n % 64) found[words - 1] &= (uint64_t(1) << n % 64) - 1;
    for (int64_t w = 0; w < words; ++w) hits += __builtin_popcountll(found[w]);
    int64_t w = 0;
    for (uint64_t word = words ? found[0] : 0; hits > 0; --hits) {
      while (!word) word = found[++w];
      int64_t at = w * 64 + __builtin_ctzll(word);
      word &= word - 1;
      keys[count] = Ordered<T>::of(scores[at]);
      index[count++] = int32_t(first + at);
    }
  }

  // Keeps the k highest.
  void cut(int64_t k) {
    if (count <= k) return;
    int64_t filled = (count + W - 1) / W * W;
    std::fill(keys + count, keys + filled, Ordered<T>::LOWEST);
    Key bound = Ordered<T>::kth(keys, filled, k);
    int64_t ties = k;
    for (int64_t i = 0; i < count; ++i) ties -= keys[i] > bound;
    int64_t kept = 0;
    for (int64_t i = 0; i < count; ++i) {
      Key key = keys[i];
      keys[kept] = key;
      index[kept] = index[i];
      kept += key > bound || (key == bound && ties-- > 0);
    }
    count = kept;
  }

  // The lowest score among the candidates.
  T lowest() const { return Ordered<T>::number(*std::min_element(keys, keys + count)); }
};

// A bound that at least k of scores[0 .. n) reach: the k-th largest of the maxima of groups * W
// >= k groups. n is a multiple of W.
template <class T>
T lower_bound(const T* scores, int64_t n, int64_t k, int64_t groups,
              typename Ordered<T>::Int* room) {
  using L = Lanes<T>;
  for (int64_t g = 0; g < groups; ++g) {
    typename L::V best = L::load(scores + g * L::W);
    for (int64_t i = (g + groups) * L::W; i < n; i += groups * L::W) {
      typename L::V other = L::load(scores + i);
      best = other > best ? other : best;
    }
    typename L::I keys = Ordered<T>::of(best);
    memcpy(room + g * L::W, &keys, sizeof keys);
  }
  return Ordered<T>::number(Ordered<T>::kth(room, groups * L::W, k));
}

}  // namespace flashmix
