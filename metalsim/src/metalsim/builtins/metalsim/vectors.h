// Vectors of 2, 3, 4 (and any other number of) scalars: storage, constructors, element access,
// swizzles.
#pragma once

#include "swizzles.h"
#include "type_traits.h"

namespace metal {

template <class T, int N>
struct vec;
template <class T, int N>
struct packed_vec;

}  // namespace metal

namespace metalsim {

// Some elements of a vector, in some order: a member of the vector's own union, so its storage is
// the vector's.
template <class T, int storage, int... indices>
struct Swizzle;

// What counts as a vector in an expression, and its element type and length.
template <class V>
struct Shape {
  static constexpr bool is_vector = false;
  static constexpr int length = 1;
};
template <class T, int N>
struct VectorShape {
  static constexpr bool is_vector = true;
  static constexpr int length = N;
  using element = T;
  using vector = metal::vec<T, N>;
};
template <class T, int N>
struct Shape<metal::vec<T, N>> : VectorShape<T, N> {};
template <class T, int N>
struct Shape<metal::packed_vec<T, N>> : VectorShape<T, N> {};
template <class T, int storage, int... indices>
struct Shape<Swizzle<T, storage, indices...>> : VectorShape<T, sizeof...(indices)> {};

template <class V>
concept vector = Shape<V>::is_vector;
template <vector V>
using element_of = typename Shape<V>::element;
template <vector V>
using vector_of = typename Shape<V>::vector;
template <class V>
concept component_source = vector<V> || scalar<V>;

template <class T, int storage, int... indices>
struct Swizzle {
  T elements[storage];

  static constexpr int positions[] = {indices...};

  METALSIM_INLINE constexpr T operator[](int index) const { return elements[positions[index]]; }

  METALSIM_INLINE constexpr Swizzle& operator=(const metal::vec<T, sizeof...(indices)>& values) {
    int next = 0;
    ((elements[indices] = values[next++]), ...);
    return *this;
  }
  METALSIM_INLINE constexpr Swizzle& operator=(const Swizzle& other) {
    return *this = metal::vec<T, sizeof...(indices)>(other);
  }
  METALSIM_INLINE constexpr Swizzle(const Swizzle&) = default;
  Swizzle() = default;
};

template <class T>
METALSIM_INLINE constexpr void append(T* elements, int& next, scalar auto value) {
  elements[next++] = static_cast<T>(value);
}
template <class T, vector V>
METALSIM_INLINE constexpr void append(T* elements, int& next, const V& values) {
  for (int index = 0; index < Shape<V>::length; ++index)
    elements[next++] = static_cast<T>(values[index]);
}

}  // namespace metalsim

// Where the copy is code, compilers look at the alignment of what it reads, and leave padding out.
#if defined(METALSIM_CHECK)
#define METALSIM_VECTOR_COPY \
  METALSIM_INLINE constexpr vec(const vec& other) : elements{} { *this = other; }
#else
#define METALSIM_VECTOR_COPY METALSIM_INLINE constexpr vec(const vec&) = default;
#endif

// The members that all lengths share. A copy is one access to memory, as on a GPU. A conversion to
// another element type must be written out, as in Metal.
#define METALSIM_VECTOR_MEMBERS(N)                                                                \
  vec() = default;                                                                                \
  METALSIM_VECTOR_COPY                                                                            \
  METALSIM_INLINE constexpr vec& operator=(const vec& other) {                                    \
    if (!__builtin_is_constant_evaluated())                                                       \
      __builtin_memcpy(elements, other.elements, N * sizeof(T));                                  \
    else                                                                                          \
      for (int index = 0; index < N; ++index) elements[index] = other.elements[index];            \
    return *this;                                                                                 \
  }                                                                                               \
  template <metalsim::scalar S>                                                                   \
  METALSIM_INLINE constexpr vec(S value) : elements{} {                                           \
    for (int index = 0; index < N; ++index) elements[index] = static_cast<T>(value);              \
  }                                                                                               \
  template <metalsim::vector V>                                                                   \
    requires(metalsim::Shape<V>::length == N)                                                     \
  METALSIM_INLINE constexpr explicit(!__is_same(metalsim::element_of<V>, T)) vec(const V& values) \
      : elements{} {                                                                              \
    for (int index = 0; index < N; ++index) elements[index] = static_cast<T>(values[index]);      \
  }                                                                                               \
  template <metalsim::component_source... Sources>                                                \
    requires(sizeof...(Sources) > 1 && (metalsim::Shape<Sources>::length + ...) == N)             \
  METALSIM_INLINE constexpr vec(const Sources&... sources) : elements{} {                         \
    int next = 0;                                                                                 \
    (metalsim::append(elements, next, sources), ...);                                             \
  }                                                                                               \
  METALSIM_INLINE constexpr T& operator[](int index) {                                            \
    return elements[METALSIM_INDEX(N, index)];                                                    \
  }                                                                                               \
  METALSIM_INLINE constexpr const T& operator[](int index) const {                                \
    return elements[METALSIM_INDEX(N, index)];                                                    \
  }

namespace metal {

template <class T, int N>
struct vec {
  T elements[N];

  METALSIM_VECTOR_MEMBERS(N)
};

template <class T>
struct alignas(2 * sizeof(T)) vec<T, 2> {
  union {
    T elements[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    METALSIM_SWIZZLES_XY(2)
    METALSIM_SWIZZLES_RG(2)
  };

  METALSIM_VECTOR_MEMBERS(2)
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 3> {
  union {
    T elements[4];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    METALSIM_SWIZZLES_XYZ(4)
    METALSIM_SWIZZLES_RGB(4)
  };

  METALSIM_VECTOR_MEMBERS(3)
};

template <class T>
struct alignas(4 * sizeof(T)) vec<T, 4> {
  union {
    T elements[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    METALSIM_SWIZZLES_XYZW(4)
    METALSIM_SWIZZLES_RGBA(4)
  };

  METALSIM_VECTOR_MEMBERS(4)
};

}  // namespace metal

#define METALSIM_VEC(type, length) vec<type, length>
#include "vector_names.h"

using metal::vec;
