// <metal_type_traits> over metalsim's own, with the address spaces that are erased there.
#pragma once

#define METALSIM_HAS_ADDRESS_SPACES
#include <metalsim/type_traits.h>

namespace metal {
#define METALSIM_REMOVE(space)             \
  template <class T>                       \
  struct remove_addrspace<space T> {       \
    using type = T;                        \
  };                                       \
  template <class T>                       \
  struct remove_addrspace<const space T> { \
    using type = const T;                  \
  };
METALSIM_REMOVE(__global)
METALSIM_REMOVE(__constant)
METALSIM_REMOVE(__local)
METALSIM_REMOVE(__private)
#undef METALSIM_REMOVE
}  // namespace metal
