// Vectors turned around: a square of W vectors transposed, one vector reversed.
#pragma once

#include <utility>

#include "simd.h"

namespace flashmix {

template <class T, int... lane>
FLASHMIX_INLINE typename Lanes<T>::V pick(typename Lanes<T>::V a, typename Lanes<T>::V b) {
#if defined(__clang__)
  return __builtin_shufflevector(a, b, lane...);
#else
  return __builtin_shuffle(a, b, typename Lanes<T>::I{lane...});
#endif
}

// Exchanges the off-diagonal quarters of the 2 step x 2 step squares that row i begins.
template <class T, int step, int i, int... lane>
FLASHMIX_INLINE void exchange(typename Lanes<T>::V* rows, std::integer_sequence<int, lane...>) {
  constexpr int W = Lanes<T>::W;
  if constexpr (!(i & step)) {
    typename Lanes<T>::V a = rows[i], b = rows[i + step];
    rows[i] = pick<T, (lane & step ? W + lane - step : lane)...>(a, b);
    rows[i + step] = pick<T, (lane & step ? W + lane : lane + step)...>(a, b);
  }
}

template <class T, int step, int... row>
FLASHMIX_INLINE void exchange_all(typename Lanes<T>::V* rows,
                                  std::integer_sequence<int, row...> lanes) {
  if constexpr (step < Lanes<T>::W) (exchange<T, step, row>(rows, lanes), ...);
}

template <class T>
FLASHMIX_INLINE void transpose(typename Lanes<T>::V* rows) {
  constexpr std::make_integer_sequence<int, Lanes<T>::W> lanes{};
  exchange_all<T, 8>(rows, lanes);
  exchange_all<T, 4>(rows, lanes);
  exchange_all<T, 2>(rows, lanes);
  exchange_all<T, 1>(rows, lanes);
}

// v[W - 1], .., v[0]
template <class T, int... lane>
FLASHMIX_INLINE typename Lanes<T>::V reversed(typename Lanes<T>::V v,
                                              std::integer_sequence<int, lane...>) {
  return pick<T, (Lanes<T>::W - 1 - lane)...>(v, v);
}

template <class T>
FLASHMIX_INLINE typename Lanes<T>::V reversed(typename Lanes<T>::V v) {
  return reversed<T>(v, std::make_integer_sequence<int, Lanes<T>::W>{});
}

// v[0], v[W - 1], .., v[1]
template <class T, int... lane>
FLASHMIX_INLINE typename Lanes<T>::V mirrored(typename Lanes<T>::V v,
                                              std::integer_sequence<int, lane...>) {
  return pick<T, (lane ? Lanes<T>::W - lane : 0)...>(v, v);
}

template <class T>
FLASHMIX_INLINE typename Lanes<T>::V mirrored(typename Lanes<T>::V v) {
  return mirrored<T>(v, std::make_integer_sequence<int, Lanes<T>::W>{});
}

}  // namespace flashmix
