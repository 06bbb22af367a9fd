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

// What a function that uses the elements of a vector reads them from: from memory they come in one
// access, as on a GPU.
template <vector V>
METALSIM_INLINE constexpr const V& at_once(const V& values) {
  return values;
}
template <class T, int N>
METALSIM_INLINE constexpr metal::vec<T, N> at_once(const metal::vec<T, N>& values) {
  return values;
}
template <class T, int storage, int... indices>
METALSIM_INLINE constexpr metal::vec<T, sizeof...(indices)> at_once(
    const Swizzle<T, storage, indices...>& values) {
  return {values.elements[indices]...};
}

template <class T>
METALSIM_INLINE constexpr void append(T* elements, int& next, scalar auto value) {
  elements[next++] = static_cast<T>(value);
}
template <class T, vector V>
METALSIM_INLINE constexpr void append(T* elements, int& next, const V& values) {
  const auto& read = at_once(values);
  for (int index = 0; index < Shape<V>::length; ++index)
    elements[next++] = static_cast<T>(read[index]);
}

#if defined(METALSIM_CHECK)
template <int bytes>
struct Piece;
#define METALSIM_PIECE(bytes, ...)                        \
  template <>                                             \
  struct Piece<bytes> {                                   \
    typedef __VA_ARGS__ type __attribute__((aligned(1))); \
  };
METALSIM_PIECE(1, uint8_t)
METALSIM_PIECE(2, uint16_t)
METALSIM_PIECE(4, uint32_t)
METALSIM_PIECE(8, uint64_t)
METALSIM_PIECE(16, uint32_t __attribute__((vector_size(16))))
#undef METALSIM_PIECE

// Of a memcpy clang makes an access for each use of what was copied.
template <int bytes>
METALSIM_INLINE void copy_bytes(void* to, const void* from) {
  constexpr int size = bytes >= 16 ? 16 : bytes >= 8 ? 8 : bytes >= 4 ? 4 : bytes >= 2 ? 2 : 1;
  using Bytes = typename Piece<size>::type;
  *static_cast<Bytes*>(to) = *static_cast<const Bytes*>(from);
  if constexpr (bytes > size)
    copy_bytes<bytes - size>(static_cast<char*>(to) + size, static_cast<const char*>(from) + size);
}
#else
template <int bytes>
METALSIM_INLINE void copy_bytes(void* to, const void* from) {
  __builtin_memcpy(to, from, bytes);
}
#endif

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
      metalsim::copy_bytes<N * sizeof(T)>(elements, other.elements);                              \
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
    const auto& read = metalsim::at_once(values);                                                 \
    for (int index = 0; index < N; ++index) elements[index] = static_cast<T>(read[index]);        \
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
