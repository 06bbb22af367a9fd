// as_type<To>(from): the same bits as another type of the same size.
#pragma once

#include "packed_vectors.h"

namespace metal {

template <class To, class From>
METALSIM_INLINE constexpr To as_type(const From& from) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs types of the same size");
  if constexpr (__is_trivially_copyable(To) && __is_trivially_copyable(From)) {
    return __builtin_bit_cast(To, from);
  } else {
    To to;
    __builtin_memcpy(static_cast<void*>(&to), &from, sizeof(To));
    return to;
  }
}

template <class To, class T, int storage, int... indices>
METALSIM_INLINE constexpr To as_type(const metalsim::Swizzle<T, storage, indices...>& from) {
  return as_type<To>(vec<T, sizeof...(indices)>(from));
}

}  // namespace metal

using metal::as_type;
