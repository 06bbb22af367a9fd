// Small library types: array<T, N>, uniform<T>, and whether a function constant has a value.
#pragma once

#include "type_traits.h"

namespace metal {

template <class T, size_t N>
struct array {
  T elements[N];

  METALSIM_INLINE constexpr T& operator[](size_t index) { return elements[index]; }
  METALSIM_INLINE constexpr const T& operator[](size_t index) const { return elements[index]; }
  METALSIM_INLINE constexpr T* data() { return elements; }
  METALSIM_INLINE constexpr const T* data() const { return elements; }
  METALSIM_INLINE constexpr T* begin() { return elements; }
  METALSIM_INLINE constexpr T* end() { return elements + N; }
  METALSIM_INLINE constexpr const T* begin() const { return elements; }
  METALSIM_INLINE constexpr const T* end() const { return elements + N; }
  static METALSIM_INLINE constexpr size_t size() { return N; }
  static METALSIM_INLINE constexpr bool empty() { return N == 0; }
};

// A value that is the same on all threads; that promise is not checked here.
template <class T>
struct uniform {
  T value;

  uniform() = default;
  METALSIM_INLINE constexpr explicit uniform(T value) : value(value) {}
  METALSIM_INLINE constexpr operator T() const { return value; }
};
template <class T>
METALSIM_INLINE constexpr uniform<T> make_uniform(T value) {
  return uniform<T>(value);
}

// Arithmetic on uniform values alone stays uniform.
#define METALSIM_UNIFORM(operation)                                               \
  template <class A, class B>                                                     \
  METALSIM_INLINE constexpr auto operator operation(uniform<A> a, uniform<B> b) { \
    return make_uniform(a.value operation b.value);                               \
  }
METALSIM_UNIFORM(+)
METALSIM_UNIFORM(-)
METALSIM_UNIFORM(*)
METALSIM_UNIFORM(/)
#undef METALSIM_UNIFORM

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
