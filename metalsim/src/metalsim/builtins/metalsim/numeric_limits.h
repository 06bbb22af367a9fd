// <metal_limits>: numeric_limits of the scalar types.
#pragma once

#include "constants.h"
#include "type_traits.h"

namespace metal {

template <class T>
struct numeric_limits {
  METALSIM_CONSTANT static constexpr bool is_specialized = false;
};

#define METALSIM_REAL_LIMITS(type, mantissa, decimal, maximum, smallest, difference, tiniest) \
  template <>                                                                                 \
  struct numeric_limits<type> {                                                               \
    METALSIM_CONSTANT static constexpr bool is_specialized = true, is_signed = true,          \
                                            is_integer = false, is_exact = false,             \
                                            has_infinity = true, has_quiet_NaN = true;        \
    METALSIM_CONSTANT static constexpr int digits = mantissa, digits10 = decimal, radix = 2;  \
    static constexpr type max() { return type(maximum); }                                     \
    static constexpr type min() { return type(smallest); }                                    \
    static constexpr type lowest() { return -type(maximum); }                                 \
    static constexpr type epsilon() { return type(difference); }                              \
    static constexpr type denorm_min() { return type(tiniest); }                              \
    static constexpr type infinity() { return type(__builtin_inff()); }                       \
    static constexpr type quiet_NaN() { return type(__builtin_nanf("")); }                    \
    static constexpr type signaling_NaN() { return type(__builtin_nanf("")); }                \
  };
METALSIM_REAL_LIMITS(float, 24, 6, FLT_MAX, FLT_MIN, FLT_EPSILON, 0x1.0p-149f)
METALSIM_REAL_LIMITS(half, 11, 3, HALF_MAX, HALF_MIN, HALF_EPSILON, 0x1.0p-24f)
METALSIM_REAL_LIMITS(bfloat, 8, 2, 0x1.fep127f, 0x1.0p-126f, 0x1.0p-7f, 0x1.0p-133f)
#undef METALSIM_REAL_LIMITS

#define METALSIM_INTEGER_LIMITS(type)                                                    \
  template <>                                                                            \
  struct numeric_limits<type> {                                                          \
    METALSIM_CONSTANT static constexpr bool is_specialized = true,                       \
                                            is_signed = static_cast<type>(-1) < 1,       \
                                            is_integer = true, is_exact = true,          \
                                            has_infinity = false, has_quiet_NaN = false; \
    METALSIM_CONSTANT static constexpr int digits =                                      \
        static_cast<int>(8 * sizeof(type)) - is_signed;                                  \
    METALSIM_CONSTANT static constexpr int digits10 = digits * 3 / 10, radix = 2;        \
    static constexpr type max() { return static_cast<type>(~0ull >> (64 - digits)); }    \
    static constexpr type min() {                                                        \
      return static_cast<type>(~static_cast<type>(max()) * is_signed);                   \
    }                                                                                    \
    static constexpr type lowest() { return min(); }                                     \
  };
METALSIM_INTEGER_LIMITS(char)
METALSIM_INTEGER_LIMITS(signed char)
METALSIM_INTEGER_LIMITS(uchar)
METALSIM_INTEGER_LIMITS(short)
METALSIM_INTEGER_LIMITS(ushort)
METALSIM_INTEGER_LIMITS(int)
METALSIM_INTEGER_LIMITS(uint)
METALSIM_INTEGER_LIMITS(long)
METALSIM_INTEGER_LIMITS(ulong)
#undef METALSIM_INTEGER_LIMITS

}  // namespace metal
