// <metal_math>: functions of float and half, scalars and vectors. half is computed in float and
// rounded once. bfloat has none of its own in Metal; it converts to float. fast:: and precise:: are
// the same functions here.
#pragma once

#include "precision.h"
#include "vector_operators.h"

#define METALSIM_VECTOR_1(name)                                          \
  template <metalsim::vector V>                                          \
  METALSIM_INLINE auto name(const V& x) {                                \
    return metalsim::map(x, [](auto element) { return name(element); }); \
  }

#define METALSIM_VECTOR_2(name)                                                        \
  template <class X, class Y>                                                          \
    requires metalsim::vector_operands<X, Y>                                           \
  METALSIM_INLINE constexpr auto name(const X& x, const Y& y) {                        \
    using V = metalsim::common_vector<X, Y>;                                           \
    V a(x), b(y), result(0);                                                           \
    for (int i = 0; i < metalsim::Shape<V>::length; ++i) result[i] = name(a[i], b[i]); \
    return result;                                                                     \
  }

#define METALSIM_VECTOR_3(name)                                                              \
  template <class X, class Y, class Z>                                                       \
    requires metalsim::vector_operands<X, Y, Z>                                              \
  METALSIM_INLINE constexpr auto name(const X& x, const Y& y, const Z& z) {                  \
    using V = metalsim::common_vector<X, Y, Z>;                                              \
    V a(x), b(y), c(z), result(0);                                                           \
    for (int i = 0; i < metalsim::Shape<V>::length; ++i) result[i] = name(a[i], b[i], c[i]); \
    return result;                                                                           \
  }

#define METALSIM_MATH_1(name, expression)                            \
  METALSIM_INLINE float name(float x) { return expression; }         \
  METALSIM_INLINE half name(half x) { return half(name(float(x))); } \
  METALSIM_VECTOR_1(name)                                            \
  METALSIM_ALSO(name)

#define METALSIM_MATH_2(name, expression)                                              \
  METALSIM_INLINE float name(float x, float y) { return expression; }                  \
  METALSIM_INLINE half name(half x, half y) { return half(name(float(x), float(y))); } \
  METALSIM_VECTOR_2(name)                                                              \
  METALSIM_ALSO(name)

// A function that Apple's special-function unit takes: counted in checking builds.
#define METALSIM_COUNTED(name, counter, expression) \
  METALSIM_MATH_1(name, (metalsim::backend::count(metalsim::counter), expression))

// Functions that the compiler has under the same name.
#define METALSIM_BUILTIN_1(name) METALSIM_MATH_1(name, METALSIM_MATH(name)(x))
#define METALSIM_BUILTIN_2(name) METALSIM_MATH_2(name, METALSIM_MATH(name)(x, y))
#define METALSIM_COUNTED_BUILTIN(name, counter) \
  METALSIM_COUNTED(name, counter, METALSIM_MATH(name)(x))

namespace metalsim {

// Always below 1, however close x is to a whole number from below: at most `most`.
METALSIM_INLINE float fraction(float x, float most) {
  const float part = x - METALSIM_MATH(floor)(x);
  return part > most ? most : part;
}

// The half behind x in the direction of y: halves of one sign are ordered as their bits.
METALSIM_INLINE half next_half(half x, half y) {
  if (x != x || y != y) return x + y;
  if (x == y) return y;
  if (x == half(0)) return __builtin_bit_cast(half, static_cast<uint16_t>(y < x ? 0x8001 : 1));
  const int step = (x < y) == (x > half(0)) ? 1 : -1;
  const int bits = __builtin_bit_cast(uint16_t, x) + step;
  return __builtin_bit_cast(half, static_cast<uint16_t>(bits));
}

// sin and cos of pi * x. The whole part goes first, exactly, and zeros are approached from zero.
METALSIM_INLINE bool is_odd(float whole) {
  const float half_turns = 0.5f * whole;
  return half_turns != METALSIM_MATH(floor)(half_turns);
}
METALSIM_INLINE float sine_of_half_turns(float x) {
  const float whole = METALSIM_MATH(rint)(x), sine = METALSIM_MATH(sin)(M_PI_F * (x - whole));
  return is_odd(whole) ? -sine : sine;
}
METALSIM_INLINE float cosine_of_half_turns(float x) {
  const float whole = METALSIM_MATH(rint)(x);
  const float cosine = METALSIM_MATH(sin)(M_PI_F * (0.5f - METALSIM_MATH(fabs)(x - whole)));
  return is_odd(whole) ? -cosine : cosine;
}

}  // namespace metalsim

namespace metal {

METALSIM_COUNTED_BUILTIN(acos, trigonometric)
METALSIM_COUNTED_BUILTIN(asin, trigonometric)
METALSIM_COUNTED_BUILTIN(atan, trigonometric)
METALSIM_COUNTED_BUILTIN(acosh, trigonometric)
METALSIM_COUNTED_BUILTIN(asinh, trigonometric)
METALSIM_COUNTED_BUILTIN(atanh, trigonometric)
METALSIM_COUNTED_BUILTIN(cos, trigonometric)
METALSIM_COUNTED_BUILTIN(sin, trigonometric)
METALSIM_COUNTED_BUILTIN(tan, trigonometric)
METALSIM_COUNTED_BUILTIN(log, logarithms)
METALSIM_COUNTED_BUILTIN(log2, logarithms)
METALSIM_COUNTED_BUILTIN(log10, logarithms)
METALSIM_BUILTIN_1(ceil)
METALSIM_BUILTIN_1(floor)
METALSIM_BUILTIN_1(rint)
METALSIM_BUILTIN_1(round)
METALSIM_BUILTIN_1(trunc)
METALSIM_COUNTED_BUILTIN(sqrt, square_roots)
METALSIM_COUNTED_BUILTIN(exp, exponentials)
METALSIM_COUNTED_BUILTIN(exp2, exponentials)
METALSIM_COUNTED_BUILTIN(sinh, exponentials)
METALSIM_COUNTED_BUILTIN(cosh, exponentials)
METALSIM_COUNTED_BUILTIN(tanh, exponentials)
METALSIM_COUNTED(exp10, exponentials, METALSIM_MATH(pow)(10.0f, x))
METALSIM_BUILTIN_1(fabs)
METALSIM_COUNTED(rsqrt, square_roots, 1.0f / METALSIM_MATH(sqrt)(x))
METALSIM_COUNTED(sinpi, trigonometric, metalsim::sine_of_half_turns(x))
METALSIM_COUNTED(cospi, trigonometric, metalsim::cosine_of_half_turns(x))
METALSIM_COUNTED(tanpi, trigonometric,
                 metalsim::sine_of_half_turns(x) / metalsim::cosine_of_half_turns(x))
METALSIM_INLINE float fract(float x) { return metalsim::fraction(x, 0x1.fffffep-1f); }
METALSIM_INLINE half fract(half x) { return half(metalsim::fraction(x, 0x1.ffcp-1f)); }
METALSIM_VECTOR_1(fract)
METALSIM_ALSO(fract)

METALSIM_BUILTIN_2(atan2)
METALSIM_BUILTIN_2(copysign)
METALSIM_MATH_2(divide, x / y)
METALSIM_BUILTIN_2(fdim)
METALSIM_BUILTIN_2(fmax)
METALSIM_BUILTIN_2(fmin)
METALSIM_BUILTIN_2(fmod)
METALSIM_MATH_2(pow, (metalsim::backend::count(metalsim::exponentials), METALSIM_MATH(pow)(x, y)))
METALSIM_MATH_2(powr, (metalsim::backend::count(metalsim::exponentials), METALSIM_MATH(pow)(x, y)))
METALSIM_INLINE float nextafter(float x, float y) { return METALSIM_MATH(nextafter)(x, y); }
METALSIM_INLINE half nextafter(half x, half y) { return metalsim::next_half(x, y); }
METALSIM_VECTOR_2(nextafter)

METALSIM_INLINE float fma(float x, float y, float z) { return METALSIM_MATH(fma)(x, y, z); }
// In double nothing is lost that could change the one rounding to half.
METALSIM_INLINE half fma(half x, half y, half z) { return half(double(x) * double(y) + double(z)); }
METALSIM_VECTOR_3(fma)

METALSIM_INLINE float fmax3(float x, float y, float z) { return fmax(x, fmax(y, z)); }
METALSIM_INLINE half fmax3(half x, half y, half z) { return fmax(x, fmax(y, z)); }
METALSIM_INLINE float fmin3(float x, float y, float z) { return fmin(x, fmin(y, z)); }
METALSIM_INLINE half fmin3(half x, half y, half z) { return fmin(x, fmin(y, z)); }
METALSIM_INLINE float fmedian3(float x, float y, float z) {
  return fmax(fmin(x, y), fmin(fmax(x, y), z));
}
METALSIM_INLINE half fmedian3(half x, half y, half z) {
  return fmax(fmin(x, y), fmin(fmax(x, y), z));
}
METALSIM_VECTOR_3(fmax3)
METALSIM_VECTOR_3(fmin3)
METALSIM_VECTOR_3(fmedian3)

METALSIM_INLINE int ilogb(float x) { return METALSIM_MATH(ilogb)(x); }
METALSIM_INLINE int ilogb(half x) { return ilogb(float(x)); }
METALSIM_INLINE float ldexp(float x, int exponent) { return METALSIM_MATH(ldexp)(x, exponent); }
METALSIM_INLINE half ldexp(half x, int exponent) { return half(ldexp(float(x), exponent)); }
METALSIM_INLINE float frexp(float x, int& exponent) { return METALSIM_MATH(frexp)(x, &exponent); }
METALSIM_INLINE half frexp(half x, int& exponent) { return half(frexp(float(x), exponent)); }

METALSIM_INLINE float modf(float x, float& whole) {
  whole = trunc(x);
  return copysign(__builtin_isinf(x) ? 0.0f : x - whole, x);
}
METALSIM_INLINE half modf(half x, half& whole) {
  float wide;
  const half rest = half(modf(float(x), wide));
  whole = half(wide);
  return rest;
}
METALSIM_INLINE float sincos(float x, float& cosine) {
  cosine = cos(x);
  return sin(x);
}
METALSIM_INLINE half sincos(half x, half& cosine) {
  cosine = cos(x);
  return sin(x);
}

METALSIM_ALSO(fma)
METALSIM_ALSO(fmax3)
METALSIM_ALSO(fmedian3)
METALSIM_ALSO(fmin3)
METALSIM_ALSO(frexp)
METALSIM_ALSO(ilogb)
METALSIM_ALSO(ldexp)
METALSIM_ALSO(modf)
METALSIM_ALSO(nextafter)
METALSIM_ALSO(sincos)

}  // namespace metal
