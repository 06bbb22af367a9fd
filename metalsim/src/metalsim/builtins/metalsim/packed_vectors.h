// Vectors with the alignment of their elements and no padding, as buffers often hold them.
#pragma once

#include "vector_operators.h"

#define METALSIM_PACKED_MEMBERS(N)                                                           \
  packed_vec() = default;                                                                    \
  template <metalsim::scalar S>                                                              \
  METALSIM_INLINE constexpr packed_vec(S value) : packed_vec(vec<T, N>(value)) {}            \
  template <metalsim::vector V>                                                              \
    requires(metalsim::Shape<V>::length == N)                                                \
  METALSIM_INLINE constexpr explicit(!__is_same(metalsim::element_of<V>, T))                 \
      packed_vec(const V& values)                                                            \
      : elements{} {                                                                         \
    for (int index = 0; index < N; ++index) elements[index] = static_cast<T>(values[index]); \
  }                                                                                          \
  template <metalsim::component_source... Sources>                                           \
    requires(sizeof...(Sources) > 1 && (metalsim::Shape<Sources>::length + ...) == N)        \
  METALSIM_INLINE constexpr packed_vec(const Sources&... sources)                            \
      : packed_vec(vec<T, N>(sources...)) {}                                                 \
  METALSIM_INLINE constexpr T& operator[](int index) { return elements[index]; }             \
  METALSIM_INLINE constexpr const T& operator[](int index) const { return elements[index]; }

namespace metal {

template <class T>
struct packed_vec<T, 2> {
  union {
    T elements[2];
    struct {
      T x, y;
    };
    struct {
      T r, g;
    };
    METALSIM_SWIZZLES_XY(2)
  };

  METALSIM_PACKED_MEMBERS(2)
  METALSIM_INLINE constexpr packed_vec(const packed_vec&) = default;
  METALSIM_INLINE constexpr packed_vec& operator=(const packed_vec& other) {
    for (int index = 0; index < 2; ++index) elements[index] = other.elements[index];
    return *this;
  }
};

template <class T>
struct packed_vec<T, 3> {
  union {
    T elements[3];
    struct {
      T x, y, z;
    };
    struct {
      T r, g, b;
    };
    METALSIM_SWIZZLES_XYZ(3)
  };

  METALSIM_PACKED_MEMBERS(3)
  METALSIM_INLINE constexpr packed_vec(const packed_vec&) = default;
  METALSIM_INLINE constexpr packed_vec& operator=(const packed_vec& other) {
    for (int index = 0; index < 3; ++index) elements[index] = other.elements[index];
    return *this;
  }
};

template <class T>
struct packed_vec<T, 4> {
  union {
    T elements[4];
    struct {
      T x, y, z, w;
    };
    struct {
      T r, g, b, a;
    };
    METALSIM_SWIZZLES_XYZW(4)
  };

  METALSIM_PACKED_MEMBERS(4)
  METALSIM_INLINE constexpr packed_vec(const packed_vec&) = default;
  METALSIM_INLINE constexpr packed_vec& operator=(const packed_vec& other) {
    for (int index = 0; index < 4; ++index) elements[index] = other.elements[index];
    return *this;
  }
};

}  // namespace metal
