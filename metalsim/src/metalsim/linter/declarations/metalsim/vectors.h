// Vectors are the compiler's own, which have swizzles and arithmetic in every address space.
#pragma once

namespace metal {
template <class T, int N>
using vec = T __attribute__((ext_vector_type(N)));
}  // namespace metal
using metal::vec;

namespace metalsim {

template <class T>
struct Shape {
  using element = T;
  __constant static constexpr int length = 1;
};
template <class T, int N>
struct Shape<vec<T, N>> {
  using element = T;
  __constant static constexpr int length = N;
};

// The compiler has no vectors of bool.
template <int N>
struct Booleans {
  bool x, y, z, w;

  Booleans() = default;
  template <class... T>
  constexpr Booleans(T...) METALSIM_THREAD : x(), y(), z(), w() {}
  constexpr bool operator[](int) const METALSIM_THREAD { return x; }
  constexpr bool operator[](int) const __global { return x; }
  constexpr bool operator[](int) const __local { return x; }
  constexpr bool operator[](int) const __constant { return x; }
  constexpr METALSIM_THREAD bool& operator[](int) METALSIM_THREAD { return x; }
  constexpr Booleans operator!() const METALSIM_THREAD { return {}; }
};
#define METALSIM_BOOLEAN_OPERATOR(symbol)                          \
  template <int N>                                                 \
  constexpr Booleans<N> operator symbol(Booleans<N>, Booleans<N>); \
  template <int N, class T>                                        \
  constexpr Booleans<N> operator symbol(Booleans<N>, vec<T, N>);   \
  template <int N, class T>                                        \
  constexpr Booleans<N> operator symbol(vec<T, N>, Booleans<N>);
METALSIM_BOOLEAN_OPERATOR(&&)
METALSIM_BOOLEAN_OPERATOR(||)
METALSIM_BOOLEAN_OPERATOR(&)
METALSIM_BOOLEAN_OPERATOR(|)
METALSIM_BOOLEAN_OPERATOR(^)
METALSIM_BOOLEAN_OPERATOR(==)
METALSIM_BOOLEAN_OPERATOR(!=)
#undef METALSIM_BOOLEAN_OPERATOR

template <int N>
struct Shape<Booleans<N>> {
  using element = bool;
  __constant static constexpr int length = N;
};

}  // namespace metalsim

namespace metalsim {
template <class T, int N>
struct Vector {
  using type = vec<T, N>;
};
template <int N>
struct Vector<bool, N> {
  using type = Booleans<N>;
};
template <class T>
struct Vector<T, 1> {
  using type = T;
};
template <>
struct Vector<bool, 1> {
  using type = bool;
};
template <class T, int N>
using vector = typename Vector<T, N>::type;

// A vector with the alignment of its elements.
template <class T, int N>
struct Packed {
  T x, y, z, w;

  Packed() = default;
  template <class... Arguments>
  constexpr Packed(Arguments...) METALSIM_THREAD : x(), y(), z(), w() {}
#define METALSIM_PACKED_MEMBERS(space)                               \
  constexpr operator vec<T, N>() const space { return vec<T, N>(); } \
  constexpr const space T& operator[](int) const space { return x; }
  METALSIM_PACKED_MEMBERS(METALSIM_THREAD)
  METALSIM_PACKED_MEMBERS(__global)
  METALSIM_PACKED_MEMBERS(__local)
  METALSIM_PACKED_MEMBERS(__constant)
#undef METALSIM_PACKED_MEMBERS
  constexpr METALSIM_THREAD T& operator[](int) METALSIM_THREAD { return x; }
  constexpr __global T& operator[](int) __global { return x; }
  constexpr __local T& operator[](int) __local { return x; }
};
}  // namespace metalsim

namespace metal {

template <class T, int N>
using packed_vec = metalsim::Packed<T, N>;
template <class T, int N>
using metalsim_vector = metalsim::vector<T, N>;

// What `T(a, b, ...)` becomes: the compiler's vectors have no constructors.
template <class T, class... Arguments>
constexpr T metalsim_construct(Arguments... arguments) {
  if constexpr (metalsim::Shape<T>::length > 1) {
    return T();
  } else {
    return T(arguments...);
  }
}

}  // namespace metal
using metal::metalsim_construct;
using metal::metalsim_vector;
using metal::packed_vec;

#define METALSIM_VEC(type, length) metalsim::vector<type, length>
#include <metalsim/vector_names.h>
