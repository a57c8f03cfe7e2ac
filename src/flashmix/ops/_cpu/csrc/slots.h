// Entries that take each argument as eight bytes, for callers that do not know its type: launch
// plans, which hold a call as data.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

#include "parallel.h"

namespace flashmix {

template <class T>
T from_slot(int64_t slot) {
  if constexpr (std::is_pointer_v<T>) {
    return reinterpret_cast<T>(slot);
  } else if constexpr (std::is_floating_point_v<T>) {
    double real;
    std::memcpy(&real, &slot, sizeof real);
    return static_cast<T>(real);
  } else {
    return static_cast<T>(slot);
  }
}

template <class... Arguments, size_t... Places>
int spread(int (*kernel)(Arguments...), const int64_t* slots, std::index_sequence<Places...>) {
  return kernel(from_slot<Arguments>(slots[Places])...);
}

template <class... Arguments>
int from_slots(int (*kernel)(Arguments...), const int64_t* slots) {
  return spread(kernel, slots, std::index_sequence_for<Arguments...>());
}

}  // namespace flashmix

// NAME_slots beside NAME.
#define FLASHMIX_SLOTS(name) \
  FLASHMIX_EXPORT int name##_slots(const int64_t* slots) { return flashmix::from_slots(name, slots); }
