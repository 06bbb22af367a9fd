// <metal_relational>: classification of floats, choices between values, tests over vectors.
#pragma once

#include "common.h"

namespace metal {

METALSIM_INLINE constexpr bool isnan(float x) { return x != x; }
METALSIM_INLINE constexpr bool isinf(float x) { return __builtin_fabsf(x) == INFINITY; }
METALSIM_INLINE constexpr bool isfinite(float x) { return __builtin_fabsf(x) < INFINITY; }
METALSIM_INLINE constexpr bool isnormal(float x) {
  return isfinite(x) && __builtin_fabsf(x) >= FLT_MIN;
}
METALSIM_INLINE constexpr bool isnormal(half x) {
  return isfinite(x) && __builtin_fabsf(x) >= static_cast<float>(HALF_MIN);
}
METALSIM_INLINE constexpr bool signbit(float x) { return __builtin_bit_cast(int, x) < 0; }
METALSIM_INLINE constexpr bool isordered(float x, float y) { return x == x && y == y; }
METALSIM_INLINE constexpr bool isunordered(float x, float y) { return !isordered(x, y); }

#define METALSIM_TEST(name)                                                         \
  template <metalsim::vector V>                                                     \
  METALSIM_INLINE constexpr auto name(const V& x) {                                 \
    const auto& read = metalsim::at_once(x);                                        \
    vec<bool, metalsim::Shape<V>::length> result(false);                            \
    for (int i = 0; i < metalsim::Shape<V>::length; ++i) result[i] = name(read[i]); \
    return result;                                                                  \
  }
METALSIM_TEST(isnan)
METALSIM_TEST(isinf)
METALSIM_TEST(isfinite)
METALSIM_TEST(isnormal)
METALSIM_TEST(signbit)
#undef METALSIM_TEST

METALSIM_INLINE constexpr bool all(bool x) { return x; }
METALSIM_INLINE constexpr bool any(bool x) { return x; }
template <metalsim::vector V>
METALSIM_INLINE constexpr bool all(const V& x) {
  const auto& read = metalsim::at_once(x);
  bool result = true;
  for (int i = 0; i < metalsim::Shape<V>::length; ++i) result = result && read[i];
  return result;
}
template <metalsim::vector V>
METALSIM_INLINE constexpr bool any(const V& x) {
  const auto& read = metalsim::at_once(x);
  bool result = false;
  for (int i = 0; i < metalsim::Shape<V>::length; ++i) result = result || read[i];
  return result;
}

// b where the condition holds, else a.
template <metalsim::scalar T>
METALSIM_INLINE constexpr T select(T a, T b, bool condition) {
  return condition ? b : a;
}
template <metalsim::vector A, metalsim::vector B>
  requires metalsim::vector_operands<A, B>
METALSIM_INLINE constexpr auto select(const A& a, const B& b,
                                      const vec<bool, metalsim::Shape<A>::length>& condition) {
  const auto& from_a = metalsim::at_once(a);
  const auto& from_b = metalsim::at_once(b);
  metalsim::vector_of<A> result(0);
  for (int i = 0; i < metalsim::Shape<A>::length; ++i)
    result[i] = condition[i] ? from_b[i] : from_a[i];
  return result;
}

}  // namespace metal
