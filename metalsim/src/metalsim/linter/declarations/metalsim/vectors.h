// Vectors are the compiler's own, which have swizzles and arithmetic in every address space.
#pragma once

#include <metalsim/swizzles.h>

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

// What stands for vectors where the compiler has none: of bool, packed ones, and their swizzles.
template <int N>
struct Booleans;
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

#define METALSIM_IN_EACH_SPACE(M) M(METALSIM_THREAD) M(__global) M(__local)

template <class T, int storage, int... indices>
struct Swizzle {
  using Value = vector<T, sizeof...(indices)>;
  T elements[storage];

#define METALSIM_SWIZZLE_MEMBERS(space)                      \
  constexpr operator Value() const space { return Value(); } \
  constexpr space Swizzle& operator=(Value) space;           \
  constexpr space Swizzle& operator+=(Value) space;          \
  constexpr space Swizzle& operator-=(Value) space;          \
  constexpr space Swizzle& operator*=(Value) space;          \
  constexpr space Swizzle& operator/=(Value) space;
  METALSIM_IN_EACH_SPACE(METALSIM_SWIZZLE_MEMBERS)
#undef METALSIM_SWIZZLE_MEMBERS
  constexpr operator Value() const __constant { return Value(); }
};
template <class T, int storage, int... indices>
struct Shape<Swizzle<T, storage, indices...>> {
  using element = T;
  __constant static constexpr int length = sizeof...(indices);
};

template <class T, int N>
struct Elements;
template <class T>
struct Elements<T, 2> {
  union {
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    METALSIM_SWIZZLES_XY(2)
    METALSIM_SWIZZLES_RG(2)
  };
};
template <class T>
struct Elements<T, 3> {
  union {
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    METALSIM_SWIZZLES_XYZ(3)
    METALSIM_SWIZZLES_RGB(3)
  };
};
template <class T>
struct Elements<T, 4> {
  union {
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    METALSIM_SWIZZLES_XYZW(4)
    METALSIM_SWIZZLES_RGBA(4)
  };
};

template <int N>
struct Booleans : Elements<bool, N> {
  using Elements<bool, N>::x;

  Booleans() = default;
  template <class... T>
  constexpr Booleans(T...) METALSIM_THREAD {}
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

#define METALSIM_BOOLEAN_SWIZZLE(symbol)                                                  \
  template <int N, int storage, int... indices>                                           \
  constexpr Booleans<N> operator symbol(Booleans<N>, Swizzle<bool, storage, indices...>); \
  template <int N, int storage, int... indices>                                           \
  constexpr Booleans<N> operator symbol(Swizzle<bool, storage, indices...>, Booleans<N>);
METALSIM_BOOLEAN_SWIZZLE(&&)
METALSIM_BOOLEAN_SWIZZLE(||)
METALSIM_BOOLEAN_SWIZZLE(==)
METALSIM_BOOLEAN_SWIZZLE(!=)
#undef METALSIM_BOOLEAN_SWIZZLE

template <int N>
struct Shape<Booleans<N>> {
  using element = bool;
  __constant static constexpr int length = N;
};

}  // namespace metalsim

namespace metalsim {

// A vector with the alignment of its elements.
template <class T, int N>
struct Packed : Elements<T, N> {
  using Elements<T, N>::x;

  Packed() = default;
  template <class... Arguments>
  constexpr Packed(Arguments...) METALSIM_THREAD {}
#define METALSIM_PACKED_MEMBERS(space)                               \
  constexpr operator vec<T, N>() const space { return vec<T, N>(); } \
  constexpr const space T& operator[](int) const space { return x; }
  METALSIM_IN_EACH_SPACE(METALSIM_PACKED_MEMBERS)
  METALSIM_PACKED_MEMBERS(__constant)
#undef METALSIM_PACKED_MEMBERS
#define METALSIM_PACKED_UPDATES(space)                   \
  constexpr space T& operator[](int) space { return x; } \
  constexpr space Packed& operator=(vec<T, N>) space;    \
  constexpr space Packed& operator+=(vec<T, N>) space;   \
  constexpr space Packed& operator-=(vec<T, N>) space;   \
  constexpr space Packed& operator*=(vec<T, N>) space;   \
  constexpr space Packed& operator/=(vec<T, N>) space;
  METALSIM_IN_EACH_SPACE(METALSIM_PACKED_UPDATES)
#undef METALSIM_PACKED_UPDATES
};
template <class T, int N>
struct Shape<Packed<T, N>> {
  using element = T;
  __constant static constexpr int length = N;
};

// With vectors they convert; a number beside them has to be told.
#define METALSIM_SCALED(symbol)                                                                   \
  template <class T, int N>                                                                       \
  constexpr vec<T, N> operator symbol(Packed<T, N>, typename Shape<Packed<T, N>>::element);       \
  template <class T, int N>                                                                       \
  constexpr vec<T, N> operator symbol(typename Shape<Packed<T, N>>::element, Packed<T, N>);       \
  template <class T, int storage, int... indices>                                                 \
  constexpr vector<T, sizeof...(indices)> operator symbol(                                        \
      Swizzle<T, storage, indices...>, typename Shape<Swizzle<T, storage, indices...>>::element); \
  template <class T, int storage, int... indices>                                                 \
  constexpr vector<T, sizeof...(indices)> operator symbol(                                        \
      typename Shape<Swizzle<T, storage, indices...>>::element, Swizzle<T, storage, indices...>);
METALSIM_SCALED(+)
METALSIM_SCALED(-)
METALSIM_SCALED(*)
METALSIM_SCALED(/)
#undef METALSIM_SCALED

// The vector that a function makes of one of these.
template <class T>
struct Plain {
  using type = T;
};
template <class T, int N>
struct Plain<Packed<T, N>> {
  using type = vec<T, N>;
};
template <class T, int storage, int... indices>
struct Plain<Swizzle<T, storage, indices...>> {
  using type = vector<T, sizeof...(indices)>;
};
template <class T>
using plain = typename Plain<T>::type;
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

// What `(T)` becomes in front of an operand.
template <class T>
struct metalsim_cast {
  constexpr metalsim_cast operator-() const METALSIM_THREAD;
  template <class Operand>
  constexpr T operator->*(Operand) const METALSIM_THREAD;
};

}  // namespace metal
using metal::metalsim_cast;
using metal::metalsim_construct;
using metal::metalsim_vector;
using metal::packed_vec;

#define METALSIM_VEC(type, length) metalsim::vector<type, length>
#include <metalsim/vector_names.h>
