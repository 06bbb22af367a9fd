// <metal_geometric>: products, lengths and directions of vectors of float and half.
#pragma once

#include "relational.h"

namespace metal {

template <metalsim::vector A, metalsim::vector B>
  requires metalsim::vector_operands<A, B>
METALSIM_INLINE constexpr auto dot(const A& a, const B& b) {
  using T = metalsim::element_of<A>;
  const auto& u = metalsim::at_once(a);
  const auto& v = metalsim::at_once(b);
  T sum = static_cast<T>(u[0] * v[0]);
  for (int i = 1; i < metalsim::Shape<A>::length; ++i) sum = static_cast<T>(sum + u[i] * v[i]);
  return sum;
}

template <metalsim::vector A, metalsim::vector B>
  requires metalsim::vector_operands<A, B>
METALSIM_INLINE constexpr auto cross(const A& a, const B& b) {
  static_assert(metalsim::Shape<A>::length == 3, "cross is for vectors of three");
  const auto& u = metalsim::at_once(a);
  const auto& v = metalsim::at_once(b);
  return metalsim::vector_of<A>(u[1] * v[2] - u[2] * v[1], u[2] * v[0] - u[0] * v[2],
                                u[0] * v[1] - u[1] * v[0]);
}

template <metalsim::vector V>
METALSIM_INLINE auto length_squared(const V& x) {
  return dot(x, x);
}
template <metalsim::vector V>
METALSIM_INLINE auto length(const V& x) {
  return sqrt(dot(x, x));
}
template <metalsim::vector A, metalsim::vector B>
  requires metalsim::vector_operands<A, B>
METALSIM_INLINE auto distance_squared(const A& a, const B& b) {
  return length_squared(a - b);
}
template <metalsim::vector A, metalsim::vector B>
  requires metalsim::vector_operands<A, B>
METALSIM_INLINE auto distance(const A& a, const B& b) {
  return length(a - b);
}
template <metalsim::vector V>
METALSIM_INLINE auto normalize(const V& x) {
  return x * rsqrt(dot(x, x));
}
template <metalsim::vector V>
METALSIM_INLINE auto faceforward(const V& normal, const V& incident, const V& reference) {
  using T = metalsim::element_of<V>;
  return dot(incident, reference) < T(0) ? metalsim::vector_of<V>(normal) : -normal;
}
template <metalsim::vector V>
METALSIM_INLINE auto reflect(const V& incident, const V& normal) {
  using T = metalsim::element_of<V>;
  return incident - T(2) * dot(normal, incident) * normal;
}
template <metalsim::vector V>
METALSIM_INLINE auto refract(const V& incident, const V& normal, metalsim::element_of<V> ratio) {
  using T = metalsim::element_of<V>;
  const T projection = dot(normal, incident);
  const T k = T(1) - ratio * ratio * (T(1) - projection * projection);
  if (k < T(0)) return metalsim::vector_of<V>(T(0));
  return ratio * incident - (ratio * projection + sqrt(k)) * normal;
}

}  // namespace metal
