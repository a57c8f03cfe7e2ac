// Vectors of T as wide as the instruction set this file is compiled for.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define FLASHMIX_INLINE inline __attribute__((always_inline))

namespace flashmix {

#if defined(__AVX512F__)
constexpr int VECTOR_BYTES = 64;
constexpr int ROWS = 12;  // of a product's tile; two vectors each fill the registers
#elif defined(__AVX2__)
constexpr int VECTOR_BYTES = 32;
constexpr int ROWS = 6;
#else
constexpr int VECTOR_BYTES = 16;
constexpr int ROWS = 4;
#endif

template <class T>
struct Lanes {
  static constexpr int W = VECTOR_BYTES / int(sizeof(T));
  using Int = typename std::conditional<sizeof(T) == 4, int32_t, int64_t>::type;
  typedef T V __attribute__((vector_size(VECTOR_BYTES)));
  typedef Int I __attribute__((vector_size(VECTOR_BYTES)));

  static V load(const T* p) {
    V v;
    memcpy(&v, p, sizeof v);
    return v;
  }
  static void store(T* p, V v) { memcpy(p, &v, sizeof v); }
  // Lanes begin .. end alone, each to its own place.
  static void store_some(T* p, V v, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
    uint32_t which = ((1u << end) - 1) & ~((1u << begin) - 1);
    if constexpr (sizeof(T) == 4)
      _mm512_mask_storeu_ps(p, which, (__m512)v);
    else
      _mm512_mask_storeu_pd(p, which, (__m512d)v);
#elif defined(__AVX2__)
    I lane{};
    for (int i = 0; i < W; ++i) lane[i] = i;
    I which = (lane >= Int(begin)) & (lane < Int(end));
    if constexpr (sizeof(T) == 4)
      _mm256_maskstore_ps(p, (__m256i)which, (__m256)v);
    else
      _mm256_maskstore_pd(p, (__m256i)which, (__m256d)v);
#else
    for (int64_t i = begin; i < end; ++i) p[i] = v[i];
#endif
  }
  static V all(T x) { return x - V{}; }  // exact, so one broadcast; 0 + x is not (-0)
  static T sum(V v) {
    T total = 0;
    for (int i = 0; i < W; ++i) total += v[i];
    return total;
  }

  // Bit i tells whether not a[i] < b[i] (or, if strict, not a[i] <= b[i]): so always where either
  // is NaN.
  template <bool strict>
  static uint32_t reaches(V a, V b) {
#if defined(__AVX512F__)
    constexpr int how = strict ? _CMP_NLE_UQ : _CMP_NLT_UQ;
    if constexpr (sizeof(T) == 4)
      return _mm512_cmp_ps_mask((__m512)a, (__m512)b, how);
    else
      return _mm512_cmp_pd_mask((__m512d)a, (__m512d)b, how);
#elif defined(__AVX2__)
    constexpr int how = strict ? _CMP_NLE_UQ : _CMP_NLT_UQ;
    if constexpr (sizeof(T) == 4)
      return _mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, how));
    else
      return _mm256_movemask_pd(_mm256_cmp_pd((__m256d)a, (__m256d)b, how));
#else
    uint32_t bits = 0;
    for (int i = 0; i < W; ++i) bits |= uint32_t(strict ? !(a[i] <= b[i]) : !(a[i] < b[i])) << i;
    return bits;
#endif
  }

  // How many a[i] >= b[i].
  static int count(I a, I b) {
#if defined(__AVX512F__)
    if constexpr (sizeof(T) == 4)
      return __builtin_popcount(_mm512_cmpge_epi32_mask((__m512i)a, (__m512i)b));
    else
      return __builtin_popcount(_mm512_cmpge_epi64_mask((__m512i)a, (__m512i)b));
#elif defined(__AVX2__)
    I yes = a >= b;
    if constexpr (sizeof(T) == 4)
      return __builtin_popcount(_mm256_movemask_ps((__m256)yes));
    else
      return __builtin_popcount(_mm256_movemask_pd((__m256d)yes));
#else
    int total = 0;
    for (int i = 0; i < W; ++i) total += a[i] >= b[i];
    return total;
#endif
  }
};

template <class T>
T dot(const T* a, const T* b, int64_t n) {
  using L = Lanes<T>;
  typename L::V total = {}, other = {};
  int64_t i = 0;
  for (; i + 2 * L::W <= n; i += 2 * L::W) {
    total += L::load(a + i) * L::load(b + i);
    other += L::load(a + i + L::W) * L::load(b + i + L::W);
  }
  T result = L::sum(total + other);
  for (; i < n; ++i) result += a[i] * b[i];
  return result;
}

// out[0 .. n) = the sum over i < count of factors[i] * row(i)[0 .. n); registers hold the sum.
template <class T, class Row>
void weighted_sum(T* out, int64_t count, const T* factors, const Row& row, int64_t n) {
  using L = Lanes<T>;
  constexpr int64_t WIDE = 4;
  int64_t d = 0;
  for (; d + WIDE * L::W <= n; d += WIDE * L::W) {
    typename L::V sum[WIDE] = {};
    for (int64_t i = 0; i < count; ++i) {
      const T* x = row(i) + d;
      typename L::V factor = L::all(factors[i]);
#pragma GCC unroll 4
      for (int w = 0; w < WIDE; ++w) sum[w] += factor * L::load(x + w * L::W);
    }
#pragma GCC unroll 4
    for (int w = 0; w < WIDE; ++w) L::store(out + d + w * L::W, sum[w]);
  }
  if (d == n) return;
  for (int64_t e = d; e < n; ++e) out[e] = 0;
  for (int64_t i = 0; i < count; ++i) {
    const T* x = row(i);
    for (int64_t e = d; e < n; ++e) out[e] += factors[i] * x[e];
  }
}

// exp of each lane, for x <= 0; within two units in the last place.
template <class T>
typename Lanes<T>::V exponential(typename Lanes<T>::V x) {
  using L = Lanes<T>;
  if constexpr (sizeof(T) == 8) {
    for (int i = 0; i < L::W; ++i) x[i] = std::exp(x[i]);
    return x;
  } else {
    // 2^n e^r with |r| <= ln(2) / 2, and e^r by its Taylor series; below -87 the result is 0.
    typename L::V magic = L::all(12582912.0f);  // adding it rounds to an integer
    typename L::V shifted = x * 1.44269504f + magic, n = shifted - magic;
    typename L::V r = x - n * 0.693145752f - n * 1.42860677e-6f;
    typename L::V p = L::all(1.0f / 5040);
    for (float c : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) p = p * r + c;
    typename L::I power = ((typename L::I)shifted + (127 - 0x4b400000)) << 23;
    typename L::V result = p * (typename L::V)power;
    result = x < -87.0f ? typename L::V{} : result;
    return x == x ? result : x;
  }
}

}  // namespace flashmix
