// <metal_common> and the functions that integers and floats share: min, max, clamp, abs, mix, step
// and so on.
#pragma once

#include "integer.h"
#include "precision.h"

namespace metal {

// For floats a number wins over a NaN, as in Metal's fmin and fmax.
#define METALSIM_ORDERED(type)                                                              \
  METALSIM_INLINE constexpr type max(type x, type y) { return x < y || x != x ? y : x; }    \
  METALSIM_INLINE constexpr type min(type x, type y) { return y < x || x != x ? y : x; }    \
  METALSIM_INLINE constexpr type max3(type x, type y, type z) { return max(x, max(y, z)); } \
  METALSIM_INLINE constexpr type min3(type x, type y, type z) { return min(x, min(y, z)); } \
  METALSIM_INLINE constexpr type median3(type x, type y, type z) {                          \
    return max(min(x, y), min(max(x, y), z));                                               \
  }                                                                                         \
  METALSIM_INLINE constexpr type clamp(type x, type low, type high) {                       \
    return min(max(x, low), high);                                                          \
  }
METALSIM_ORDERED(char)
METALSIM_ORDERED(signed char)
METALSIM_ORDERED(uchar)
METALSIM_ORDERED(short)
METALSIM_ORDERED(ushort)
METALSIM_ORDERED(int)
METALSIM_ORDERED(uint)
METALSIM_ORDERED(long)
METALSIM_ORDERED(ulong)
METALSIM_ORDERED(half)
METALSIM_ORDERED(float)
#undef METALSIM_ORDERED
METALSIM_VECTOR_2(max)
METALSIM_VECTOR_2(min)
METALSIM_VECTOR_3(max3)
METALSIM_VECTOR_3(min3)
METALSIM_VECTOR_3(median3)
METALSIM_VECTOR_3(clamp)

METALSIM_INLINE constexpr float abs(float x) { return __builtin_fabsf(x); }
METALSIM_INLINE constexpr half abs(half x) { return static_cast<half>(__builtin_fabsf(x)); }
template <metalsim::integer T>
METALSIM_INLINE constexpr T abs(T x) {
  return static_cast<T>(x < 0 ? -x : x);
}
METALSIM_VECTOR_1(abs)

#define METALSIM_COMMON(type)                                                                     \
  METALSIM_INLINE constexpr type mix(type x, type y, type a) { return x + (y - x) * a; }          \
  METALSIM_INLINE constexpr type saturate(type x) { return clamp(x, type(0), type(1)); }          \
  METALSIM_INLINE constexpr type sign(type x) {                                                   \
    return x > type(0) ? type(1) : x < type(0) ? type(-1) : x == x ? x : type(0);                 \
  }                                                                                               \
  METALSIM_INLINE constexpr type step(type edge, type x) { return x < edge ? type(0) : type(1); } \
  METALSIM_INLINE constexpr type smoothstep(type low, type high, type x) {                        \
    const type t = saturate((x - low) / (high - low));                                            \
    return t * t * (type(3) - type(2) * t);                                                       \
  }
METALSIM_COMMON(float)
METALSIM_COMMON(half)
#undef METALSIM_COMMON
METALSIM_VECTOR_1(saturate)
METALSIM_VECTOR_1(sign)
METALSIM_VECTOR_2(step)
METALSIM_VECTOR_3(mix)
METALSIM_VECTOR_3(smoothstep)

METALSIM_ALSO(abs)
METALSIM_ALSO(clamp)
METALSIM_ALSO(max)
METALSIM_ALSO(max3)
METALSIM_ALSO(median3)
METALSIM_ALSO(min)
METALSIM_ALSO(min3)
METALSIM_ALSO(mix)
METALSIM_ALSO(saturate)
METALSIM_ALSO(sign)
METALSIM_ALSO(smoothstep)
METALSIM_ALSO(step)

}  // namespace metal
