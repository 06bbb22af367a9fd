// Functions of Metal's compiler that its own library is written in. They are not public, but MLX
// and others call them; `mode` is one of the three constants for the precision of mathematics.
#pragma once

#include <metalsim/shim.h>

#define __METAL_PRECISE_MATH__ 0
#define __METAL_FAST_MATH__ 1
#define __METAL_MAYBE_FAST_MATH__ 2

#ifndef METALSIM_INTERNAL_1
#define METALSIM_INTERNAL_1(name)                           \
  template <class T>                                        \
  METALSIM_INLINE T __metal_##name(T x, int /*mode*/ = 0) { \
    return metal::name(x);                                  \
  }
#define METALSIM_INTERNAL_2(name)                                \
  template <class T, class U>                                    \
  METALSIM_INLINE T __metal_##name(T x, U y, int /*mode*/ = 0) { \
    return metal::name(x, y);                                    \
  }
#define METALSIM_INTERNAL_3(name)                                     \
  template <class T>                                                  \
  METALSIM_INLINE T __metal_##name(T x, T y, T z, int /*mode*/ = 0) { \
    return metal::name(x, y, z);                                      \
  }
#define METALSIM_INTERNAL_SIMD(name)                                    \
  template <class T>                                                    \
  METALSIM_INLINE T __metal_##name(T data, uint site = METALSIM_SITE) { \
    return metal::name(data, site);                                     \
  }
#define METALSIM_INTERNAL_LANE(name)                                                 \
  template <class T>                                                                 \
  METALSIM_INLINE T __metal_##name(T data, ushort lane, uint site = METALSIM_SITE) { \
    return metal::name(data, lane, site);                                            \
  }
#define METALSIM_INTERNAL_FILL(name)                                              \
  template <class T>                                                              \
  METALSIM_INLINE T __metal_##name(T data, T filling, ushort delta, ushort width, \
                                   uint site = METALSIM_SITE) {                   \
    return metal::name(data, filling, delta, width, site);                        \
  }
#endif

METALSIM_INTERNAL_1(acos)
METALSIM_INTERNAL_1(acosh)
METALSIM_INTERNAL_1(asin)
METALSIM_INTERNAL_1(asinh)
METALSIM_INTERNAL_1(atan)
METALSIM_INTERNAL_1(atanh)
METALSIM_INTERNAL_1(ceil)
METALSIM_INTERNAL_1(cos)
METALSIM_INTERNAL_1(cosh)
METALSIM_INTERNAL_1(cospi)
METALSIM_INTERNAL_1(exp)
METALSIM_INTERNAL_1(exp10)
METALSIM_INTERNAL_1(exp2)
METALSIM_INTERNAL_1(fabs)
METALSIM_INTERNAL_1(floor)
METALSIM_INTERNAL_1(fract)
METALSIM_INTERNAL_1(log)
METALSIM_INTERNAL_1(log10)
METALSIM_INTERNAL_1(log2)
METALSIM_INTERNAL_1(rint)
METALSIM_INTERNAL_1(round)
METALSIM_INTERNAL_1(rsqrt)
METALSIM_INTERNAL_1(sin)
METALSIM_INTERNAL_1(sinh)
METALSIM_INTERNAL_1(sinpi)
METALSIM_INTERNAL_1(sqrt)
METALSIM_INTERNAL_1(tan)
METALSIM_INTERNAL_1(tanh)
METALSIM_INTERNAL_1(tanpi)
METALSIM_INTERNAL_1(trunc)
METALSIM_INTERNAL_2(atan2)
METALSIM_INTERNAL_2(divide)
METALSIM_INTERNAL_2(fmax)
METALSIM_INTERNAL_2(fmin)
METALSIM_INTERNAL_2(fmod)
METALSIM_INTERNAL_2(ldexp)
METALSIM_INTERNAL_2(nextafter)
METALSIM_INTERNAL_2(pow)
METALSIM_INTERNAL_2(powr)
METALSIM_INTERNAL_3(fma)
METALSIM_INTERNAL_3(fmax3)
METALSIM_INTERNAL_3(fmedian3)
METALSIM_INTERNAL_3(fmin3)
METALSIM_INTERNAL_SIMD(simd_max)
METALSIM_INTERNAL_SIMD(simd_min)
METALSIM_INTERNAL_SIMD(simd_prefix_exclusive_product)
METALSIM_INTERNAL_SIMD(simd_prefix_exclusive_sum)
METALSIM_INTERNAL_SIMD(simd_prefix_inclusive_product)
METALSIM_INTERNAL_SIMD(simd_prefix_inclusive_sum)
METALSIM_INTERNAL_SIMD(simd_product)
METALSIM_INTERNAL_SIMD(simd_sum)
METALSIM_INTERNAL_SIMD(simd_xor)
METALSIM_INTERNAL_LANE(simd_broadcast)
METALSIM_INTERNAL_LANE(simd_shuffle)
METALSIM_INTERNAL_LANE(simd_shuffle_down)
METALSIM_INTERNAL_LANE(simd_shuffle_rotate_down)
METALSIM_INTERNAL_LANE(simd_shuffle_rotate_up)
METALSIM_INTERNAL_LANE(simd_shuffle_up)
METALSIM_INTERNAL_LANE(simd_shuffle_xor)
METALSIM_INTERNAL_FILL(simd_shuffle_and_fill_down)
METALSIM_INTERNAL_FILL(simd_shuffle_and_fill_up)

template <class T>
METALSIM_INLINE T __metal_frexp(T x, METALSIM_THREAD int* exponent, int /*mode*/ = 0) {
  return metal::frexp(x, *exponent);
}
METALSIM_INLINE ushort __metal_get_simdgroup_size(ushort) { return 32; }
