// Functions of numbers: mathematics, integers, relations, geometry.
#pragma once

#include <metalsim/precision.h>

namespace metalsim {

template <class A, class B, bool same = __is_same(A, B)>
struct Common {
  using type = decltype(value_of<plain<A>>() + value_of<plain<B>>());
};
template <class A, class B>
struct Common<A, B, true> {
  using type = plain<A>;
};
template <class A, class B>
using common = typename Common<A, B>::type;
template <class T>
using truth = vector<bool, Shape<T>::length>;

}  // namespace metalsim

#define METALSIM_FUNCTION_1(name)       \
  template <class T>                    \
  constexpr metalsim::plain<T> name(T); \
  METALSIM_ALSO(name)
#define METALSIM_FUNCTION_2(name)              \
  template <class A, class B>                  \
  constexpr metalsim::common<A, B> name(A, B); \
  METALSIM_ALSO(name)
#define METALSIM_FUNCTION_3(name)                                      \
  template <class A, class B, class C>                                 \
  constexpr metalsim::common<metalsim::common<A, B>, C> name(A, B, C); \
  METALSIM_ALSO(name)

namespace metal {

METALSIM_FUNCTION_1(acos)
METALSIM_FUNCTION_1(acosh)
METALSIM_FUNCTION_1(asin)
METALSIM_FUNCTION_1(asinh)
METALSIM_FUNCTION_1(atan)
METALSIM_FUNCTION_1(atanh)
METALSIM_FUNCTION_1(ceil)
METALSIM_FUNCTION_1(cos)
METALSIM_FUNCTION_1(cosh)
METALSIM_FUNCTION_1(cospi)
METALSIM_FUNCTION_1(exp)
METALSIM_FUNCTION_1(exp10)
METALSIM_FUNCTION_1(exp2)
METALSIM_FUNCTION_1(fabs)
METALSIM_FUNCTION_1(floor)
METALSIM_FUNCTION_1(fract)
METALSIM_FUNCTION_1(log)
METALSIM_FUNCTION_1(log10)
METALSIM_FUNCTION_1(log2)
METALSIM_FUNCTION_1(rint)
METALSIM_FUNCTION_1(round)
METALSIM_FUNCTION_1(rsqrt)
METALSIM_FUNCTION_1(saturate)
METALSIM_FUNCTION_1(sign)
METALSIM_FUNCTION_1(sin)
METALSIM_FUNCTION_1(sinh)
METALSIM_FUNCTION_1(sinpi)
METALSIM_FUNCTION_1(sqrt)
METALSIM_FUNCTION_1(tan)
METALSIM_FUNCTION_1(tanh)
METALSIM_FUNCTION_1(tanpi)
METALSIM_FUNCTION_1(trunc)
METALSIM_FUNCTION_1(clz)
METALSIM_FUNCTION_1(ctz)
METALSIM_FUNCTION_1(popcount)
METALSIM_FUNCTION_1(reverse_bits)
METALSIM_FUNCTION_1(normalize)

METALSIM_FUNCTION_2(atan2)
METALSIM_FUNCTION_2(copysign)
METALSIM_FUNCTION_2(divide)
METALSIM_FUNCTION_2(fdim)
METALSIM_FUNCTION_2(fmax)
METALSIM_FUNCTION_2(fmin)
METALSIM_FUNCTION_2(fmod)
METALSIM_FUNCTION_2(nextafter)
METALSIM_FUNCTION_2(pow)
METALSIM_FUNCTION_2(powr)
METALSIM_FUNCTION_2(step)
METALSIM_FUNCTION_2(absdiff)
METALSIM_FUNCTION_2(addsat)
METALSIM_FUNCTION_2(subsat)
METALSIM_FUNCTION_2(hadd)
METALSIM_FUNCTION_2(rhadd)
METALSIM_FUNCTION_2(mulhi)
METALSIM_FUNCTION_2(mul24)
METALSIM_FUNCTION_2(rotate)
METALSIM_FUNCTION_2(cross)
METALSIM_FUNCTION_2(reflect)

METALSIM_FUNCTION_3(fma)
METALSIM_FUNCTION_3(fmax3)
METALSIM_FUNCTION_3(fmin3)
METALSIM_FUNCTION_3(fmedian3)
METALSIM_FUNCTION_3(max3)
METALSIM_FUNCTION_3(min3)
METALSIM_FUNCTION_3(median3)
METALSIM_FUNCTION_3(mix)
METALSIM_FUNCTION_3(smoothstep)
METALSIM_FUNCTION_3(madhi)
METALSIM_FUNCTION_3(madsat)
METALSIM_FUNCTION_3(mad24)
METALSIM_FUNCTION_3(faceforward)
METALSIM_FUNCTION_3(refract)

// These may be needed to know a constant.
template <class T>
constexpr T abs(T x) {
  return x < T(0) ? -x : x;
}
template <class A, class B>
constexpr metalsim::common<A, B> max(A x, B y) {
  return metalsim::plain<A>(x) < metalsim::plain<B>(y) ? metalsim::plain<B>(y)
                                                       : metalsim::plain<A>(x);
}
template <class A, class B>
constexpr metalsim::common<A, B> min(A x, B y) {
  return metalsim::plain<B>(y) < metalsim::plain<A>(x) ? metalsim::plain<B>(y)
                                                       : metalsim::plain<A>(x);
}
template <class A, class B, class C>
constexpr metalsim::common<metalsim::common<A, B>, C> clamp(A x, B low, C high) {
  return min(max(x, low), high);
}

template <class T>
constexpr T extract_bits(T, uint, uint);
template <class T>
constexpr T insert_bits(T, T, uint, uint);
template <class T, class Exponent>
T ldexp(T, Exponent);
template <class T>
metalsim::vector<int, metalsim::Shape<T>::length> ilogb(T);
template <class T, class Exponent>
T frexp(T, METALSIM_THREAD Exponent&);
template <class T>
T modf(T, METALSIM_THREAD T&);
template <class T>
T sincos(T, METALSIM_THREAD T&);

#define METALSIM_TEST(name) \
  template <class T>        \
  constexpr metalsim::truth<T> name(T);
METALSIM_TEST(isfinite)
METALSIM_TEST(isinf)
METALSIM_TEST(isnan)
METALSIM_TEST(isnormal)
METALSIM_TEST(signbit)
#undef METALSIM_TEST
template <class A, class B>
constexpr metalsim::truth<metalsim::common<A, B>> isordered(A, B);
template <class A, class B>
constexpr metalsim::truth<metalsim::common<A, B>> isunordered(A, B);
template <class T>
constexpr bool all(T);
template <class T>
constexpr bool any(T);
template <class A, class B, class Condition>
constexpr metalsim::common<A, B> select(A, B, Condition);

#define METALSIM_MEASURE_1(name) \
  template <class T>             \
  typename metalsim::Shape<T>::element name(T);
METALSIM_MEASURE_1(length)
METALSIM_MEASURE_1(length_squared)
#undef METALSIM_MEASURE_1
#define METALSIM_MEASURE_2(name) \
  template <class A, class B>    \
  typename metalsim::Shape<A>::element name(A, B);
METALSIM_MEASURE_2(distance)
METALSIM_MEASURE_2(distance_squared)
METALSIM_MEASURE_2(dot)
#undef METALSIM_MEASURE_2

template <class To, class From>
constexpr To as_type(From) {
  return To();
}

METALSIM_ALSO(abs)
METALSIM_ALSO(clamp)
METALSIM_ALSO(frexp)
METALSIM_ALSO(ilogb)
METALSIM_ALSO(ldexp)
METALSIM_ALSO(max)
METALSIM_ALSO(min)
METALSIM_ALSO(modf)
METALSIM_ALSO(sincos)

}  // namespace metal
using metal::as_type;
