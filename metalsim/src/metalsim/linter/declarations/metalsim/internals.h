// The names of metalsim's own header, with any arguments.
#pragma once

#define METALSIM_INTERNAL_1(name)        \
  template <class T, class... Arguments> \
  T __metal_##name(T, Arguments...);
#define METALSIM_INTERNAL_2 METALSIM_INTERNAL_1
#define METALSIM_INTERNAL_3 METALSIM_INTERNAL_1
#define METALSIM_INTERNAL_SIMD METALSIM_INTERNAL_1
#define METALSIM_INTERNAL_LANE METALSIM_INTERNAL_1
#define METALSIM_INTERNAL_FILL METALSIM_INTERNAL_1
#include_next <metalsim/internals.h>
