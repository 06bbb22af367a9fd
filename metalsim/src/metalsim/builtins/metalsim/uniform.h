// <metal_uniform>: uniform<T>. Lint reads this header too.
#pragma once

namespace metal {

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

}  // namespace metal
