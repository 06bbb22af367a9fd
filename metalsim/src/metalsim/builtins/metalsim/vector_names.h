// The names of vectors. Lint reads this header too: METALSIM_VEC(type, length) is the type of one,
// for the compiler that lint asks has no vectors of bool.
#pragma once

#define METALSIM_VECTOR_NAMES(type)      \
  namespace metal {                      \
  using type##2 = METALSIM_VEC(type, 2); \
  using type##3 = METALSIM_VEC(type, 3); \
  using type##4 = METALSIM_VEC(type, 4); \
  }                                      \
  using metal::type##2;                  \
  using metal::type##3;                  \
  using metal::type##4;
#define METALSIM_NUMBER_NAMES(type)             \
  METALSIM_VECTOR_NAMES(type)                   \
  namespace metal {                             \
  using packed_##type##2 = packed_vec<type, 2>; \
  using packed_##type##3 = packed_vec<type, 3>; \
  using packed_##type##4 = packed_vec<type, 4>; \
  }                                             \
  using metal::packed_##type##2;                \
  using metal::packed_##type##3;                \
  using metal::packed_##type##4;
METALSIM_VECTOR_NAMES(bool)
METALSIM_NUMBER_NAMES(char)
METALSIM_NUMBER_NAMES(uchar)
METALSIM_NUMBER_NAMES(short)
METALSIM_NUMBER_NAMES(ushort)
METALSIM_NUMBER_NAMES(int)
METALSIM_NUMBER_NAMES(uint)
METALSIM_NUMBER_NAMES(long)
METALSIM_NUMBER_NAMES(ulong)
METALSIM_NUMBER_NAMES(half)
METALSIM_NUMBER_NAMES(bfloat)
METALSIM_NUMBER_NAMES(float)
#undef METALSIM_NUMBER_NAMES
#undef METALSIM_VECTOR_NAMES
