// Small library types: array<T, N>, os_log.
#pragma once

#include "type_traits.h"
#include "uniform.h"

namespace metal {

template <class T, size_t N>
struct array {
  T elements[N];

  METALSIM_INLINE constexpr T& operator[](size_t index) {
    return elements[METALSIM_INDEX(N, index)];
  }
  METALSIM_INLINE constexpr const T& operator[](size_t index) const {
    return elements[METALSIM_INDEX(N, index)];
  }
  METALSIM_INLINE constexpr T* data() { return elements; }
  METALSIM_INLINE constexpr const T* data() const { return elements; }
  METALSIM_INLINE constexpr T* begin() { return elements; }
  METALSIM_INLINE constexpr T* end() { return elements + N; }
  METALSIM_INLINE constexpr const T* begin() const { return elements; }
  METALSIM_INLINE constexpr const T* end() const { return elements + N; }
  static METALSIM_INLINE constexpr size_t size() { return N; }
  static METALSIM_INLINE constexpr bool empty() { return N == 0; }
};

// Messages to the system's log are dropped.
struct os_log {
  METALSIM_INLINE constexpr os_log(const char*, const char*) {}
  template <class... T>
  METALSIM_INLINE void log(T...) const {}
  template <class... T>
  METALSIM_INLINE void log_debug(T...) const {}
  template <class... T>
  METALSIM_INLINE void log_info(T...) const {}
  template <class... T>
  METALSIM_INLINE void log_error(T...) const {}
  template <class... T>
  METALSIM_INLINE void log_fault(T...) const {}
};

template <class T>
METALSIM_INLINE constexpr T* addressof(T& object) {
  return __builtin_addressof(object);
}
template <class T>
METALSIM_INLINE constexpr void swap(T& a, T& b) {
  const T before = a;
  a = b;
  b = before;
}

}  // namespace metal
