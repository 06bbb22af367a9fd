// Operators on vectors: element by element; a scalar operand becomes a vector of the other's
// element type.
#pragma once

#include "vectors.h"

namespace metalsim {

// The vector type that several operands have in common, when at least one is a vector and the
// others fit it.
template <class... Operands>
struct CommonVector;
template <class First, class... Rest>
struct CommonVector<First, Rest...> : CommonVector<Rest...> {};
template <vector First, class... Rest>
struct CommonVector<First, Rest...> {
  using type = vector_of<First>;
};
template <>
struct CommonVector<> {};
template <class... Operands>
using common_vector = typename CommonVector<Operands...>::type;
template <class V, class Operand>
constexpr bool fits() {
  if constexpr (vector<Operand>)
    return __is_same(vector_of<Operand>, V);
  else
    return scalar<Operand>;
}
template <class... Operands>
concept vector_operands =
    (vector<Operands> || ...) && (fits<common_vector<Operands...>, Operands>() && ...);

template <class V, class Operation>
METALSIM_INLINE constexpr vector_of<V> map(const V& a, Operation operation) {
  const auto& read = at_once(a);
  vector_of<V> result(0);
  for (int index = 0; index < Shape<V>::length; ++index)
    result[index] = static_cast<element_of<V>>(operation(read[index]));
  return result;
}

template <class V, class Result, class Operation>
METALSIM_INLINE constexpr metal::vec<Result, Shape<V>::length> zip(const V& a, const V& b,
                                                                   Operation operation) {
  metal::vec<Result, Shape<V>::length> result(0);
  for (int index = 0; index < Shape<V>::length; ++index)
    result[index] = operation(a[index], b[index]);
  return result;
}

}  // namespace metalsim

namespace metal {

// `y` as the right operand of an operator takes it.
#define METALSIM_AS_IT_IS(y) (y)
#define METALSIM_LOW_BITS(y) ((y) & static_cast<T>(8 * sizeof(T) - 1))

#define METALSIM_BINARY(op, right)                                                           \
  template <class L, class R>                                                                \
    requires metalsim::vector_operands<L, R>                                                 \
  METALSIM_INLINE constexpr auto operator op(const L& a, const R& b) {                       \
    using V = metalsim::common_vector<L, R>;                                                 \
    using T = metalsim::element_of<V>;                                                       \
    return metalsim::zip<V, T>(                                                              \
        V(a), V(b), [](T x, T y) METALSIM_LAMBDA { return static_cast<T>(x op right(y)); }); \
  }                                                                                          \
  template <metalsim::vector L, class R>                                                     \
    requires metalsim::vector_operands<L, R>                                                 \
  METALSIM_INLINE constexpr L& operator op##=(L & a, const R & b) {                          \
    return a = a op b;                                                                       \
  }

#define METALSIM_LAMBDA __attribute__((always_inline))
METALSIM_BINARY(+, METALSIM_AS_IT_IS)
METALSIM_BINARY(-, METALSIM_AS_IT_IS)
METALSIM_BINARY(*, METALSIM_AS_IT_IS)
METALSIM_BINARY(/, METALSIM_AS_IT_IS)
METALSIM_BINARY(%, METALSIM_AS_IT_IS)
METALSIM_BINARY(&, METALSIM_AS_IT_IS)
METALSIM_BINARY(|, METALSIM_AS_IT_IS)
METALSIM_BINARY(^, METALSIM_AS_IT_IS)
METALSIM_BINARY(<<, METALSIM_LOW_BITS)
METALSIM_BINARY(>>, METALSIM_LOW_BITS)
#undef METALSIM_BINARY
#undef METALSIM_AS_IT_IS
#undef METALSIM_LOW_BITS

#define METALSIM_COMPARISON(op)                                                                 \
  template <class L, class R>                                                                   \
    requires metalsim::vector_operands<L, R>                                                    \
  METALSIM_INLINE constexpr auto operator op(const L& a, const R& b) {                          \
    using V = metalsim::common_vector<L, R>;                                                    \
    using T = metalsim::element_of<V>;                                                          \
    return metalsim::zip<V, bool>(V(a), V(b), [](T x, T y) METALSIM_LAMBDA { return x op y; }); \
  }
METALSIM_COMPARISON(==)
METALSIM_COMPARISON(!=)
METALSIM_COMPARISON(<)
METALSIM_COMPARISON(>)
METALSIM_COMPARISON(<=)
METALSIM_COMPARISON(>=)
METALSIM_COMPARISON(&&)
METALSIM_COMPARISON(||)
#undef METALSIM_COMPARISON
#undef METALSIM_LAMBDA

template <metalsim::vector V>
METALSIM_INLINE constexpr auto operator+(const V& a) {
  return metalsim::vector_of<V>(a);
}

template <metalsim::vector V>
METALSIM_INLINE constexpr auto operator-(const V& a) {
  const auto& read = metalsim::at_once(a);
  metalsim::vector_of<V> result(0);
  for (int index = 0; index < metalsim::Shape<V>::length; ++index)
    result[index] = static_cast<metalsim::element_of<V>>(-read[index]);
  return result;
}

template <metalsim::vector V>
METALSIM_INLINE constexpr auto operator~(const V& a) {
  const auto& read = metalsim::at_once(a);
  metalsim::vector_of<V> result(0);
  for (int index = 0; index < metalsim::Shape<V>::length; ++index)
    result[index] = static_cast<metalsim::element_of<V>>(~read[index]);
  return result;
}

template <metalsim::vector V>
METALSIM_INLINE constexpr auto operator!(const V& a) {
  const auto& read = metalsim::at_once(a);
  vec<bool, metalsim::Shape<V>::length> result(false);
  for (int index = 0; index < metalsim::Shape<V>::length; ++index) result[index] = !read[index];
  return result;
}

template <metalsim::vector V>
METALSIM_INLINE constexpr V& operator++(V& a) {
  return a = a + 1;
}
template <metalsim::vector V>
METALSIM_INLINE constexpr V& operator--(V& a) {
  return a = a - 1;
}
template <metalsim::vector V>
METALSIM_INLINE constexpr auto operator++(V& a, int) {
  const metalsim::vector_of<V> before(a);
  a = before + 1;
  return before;
}
template <metalsim::vector V>
METALSIM_INLINE constexpr auto operator--(V& a, int) {
  const metalsim::vector_of<V> before(a);
  a = before - 1;
  return before;
}

}  // namespace metal
