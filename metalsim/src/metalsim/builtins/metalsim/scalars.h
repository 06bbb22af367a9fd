// Scalar types. half is the compiler's 16-bit float, built so that it rounds after every operation;
// bfloat is a class because compilers still lack the arithmetic, with Metal's rules: implicit to
// float and from integers, explicit from float and half.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__APPLE__)
// Metal's 64-bit integers are long; the C library here says long long, another type to overloads.
#define int64_t long
#define uint64_t unsigned long
#endif

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;

#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
#error "on arm64 metalsim needs clang or g++ 13: older g++ has no half arithmetic in C++"
#endif
typedef _Float16 half;

namespace metalsim {

template <class T>
inline constexpr bool is_integer = false;
template <class T>
inline constexpr bool is_native_real = false;

#define METALSIM_IS_INTEGER(type) \
  template <>                     \
  inline constexpr bool is_integer<type> = true;
METALSIM_IS_INTEGER(bool)
METALSIM_IS_INTEGER(char)
METALSIM_IS_INTEGER(signed char)
METALSIM_IS_INTEGER(unsigned char)
METALSIM_IS_INTEGER(short)
METALSIM_IS_INTEGER(unsigned short)
METALSIM_IS_INTEGER(int)
METALSIM_IS_INTEGER(unsigned int)
METALSIM_IS_INTEGER(long)
METALSIM_IS_INTEGER(unsigned long)
METALSIM_IS_INTEGER(long long)
METALSIM_IS_INTEGER(unsigned long long)
#undef METALSIM_IS_INTEGER

template <>
inline constexpr bool is_native_real<float> = true;
template <>
inline constexpr bool is_native_real<half> = true;

template <class T>
concept native_scalar = is_integer<T> || is_native_real<T>;

}  // namespace metalsim

struct bfloat {
  uint16_t bits;

  bfloat() = default;
  template <metalsim::native_scalar T>
  METALSIM_INLINE constexpr explicit(!metalsim::is_integer<T>) bfloat(T value)
      : bits(round(as_float(value))) {}
  METALSIM_INLINE constexpr operator float() const {
    return __builtin_bit_cast(float, static_cast<uint32_t>(bits) << 16);
  }
  METALSIM_INLINE constexpr bfloat operator-() const { return from_bits(bits ^ 0x8000); }

  static METALSIM_INLINE constexpr bfloat from_bits(uint16_t bits) {
    bfloat value{};
    value.bits = bits;
    return value;
  }

 private:
  // Of an integer that float does not hold, the lowest bit tells of those that are lost: the result
  // is rounded once.
  template <class T>
  static METALSIM_INLINE constexpr float as_float(T value) {
    if constexpr (metalsim::is_integer<T> && sizeof(T) > 2) {
      const bool negative = value < 0;
      const uint64_t wide = static_cast<uint64_t>(value), size = negative ? 0 - wide : wide;
      const int excess = 40 - (size == 0 ? 63 : __builtin_clzll(size));
      if (excess > 0) {
        const uint64_t kept = size >> excess, lost = size - (kept << excess);
        const float exact = static_cast<float>((kept | (lost != 0)) << excess);
        return negative ? -exact : exact;
      }
    }
    return static_cast<float>(value);
  }
  // To nearest, ties to even; a NaN stays one.
  static METALSIM_INLINE constexpr uint16_t round(float value) {
    const uint32_t word = __builtin_bit_cast(uint32_t, value);
    if ((word & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<uint16_t>(word >> 16 | 0x40);
    return static_cast<uint16_t>((word + 0x7FFFu + (word >> 16 & 1)) >> 16);
  }
};

// With an integer the result is bfloat, with float or half it is float (through bfloat's
// conversion).
#define METALSIM_BFLOAT_OPERATOR(op)                                  \
  METALSIM_INLINE constexpr bfloat operator op(bfloat a, bfloat b) {  \
    return bfloat(static_cast<float>(a) op static_cast<float>(b));    \
  }                                                                   \
  template <class T>                                                  \
    requires metalsim::is_integer<T>                                  \
  METALSIM_INLINE constexpr bfloat operator op(bfloat a, T b) {       \
    return a op bfloat(b);                                            \
  }                                                                   \
  template <class T>                                                  \
    requires metalsim::is_integer<T>                                  \
  METALSIM_INLINE constexpr bfloat operator op(T a, bfloat b) {       \
    return bfloat(a) op b;                                            \
  }                                                                   \
  template <metalsim::native_scalar T>                                \
  METALSIM_INLINE constexpr bfloat& operator op##=(bfloat & a, T b) { \
    return a = bfloat(a op b);                                        \
  }                                                                   \
  METALSIM_INLINE constexpr bfloat& operator op##=(bfloat & a, bfloat b) { return a = a op b; }
METALSIM_BFLOAT_OPERATOR(+)
METALSIM_BFLOAT_OPERATOR(-)
METALSIM_BFLOAT_OPERATOR(*)
METALSIM_BFLOAT_OPERATOR(/)
#undef METALSIM_BFLOAT_OPERATOR

#if defined(METALSIM_CHECK) && defined(__clang__)
namespace metalsim {
template <size_t length>
struct Length {
  using element = unsigned char;
  static constexpr element elements[length] = {};
};
}  // namespace metalsim
// For the subscripts of our own arrays: clang checks one whose element is read, where it lets a
// reference be one past the end.
#define METALSIM_INDEX(length, index) ((index) + metalsim::Length<(length)>::elements[index])
#else
#define METALSIM_INDEX(length, index) (index)
#endif

namespace metalsim {

template <class T>
concept scalar = native_scalar<T> || __is_same(T, bfloat);

template <class T>
concept real = is_native_real<T> || __is_same(T, bfloat);

template <class T>
constexpr ScalarType scalar_type() {
  if constexpr (__is_same(T, float)) return ScalarType::float32;
  if constexpr (__is_same(T, half)) return ScalarType::float16;
  if constexpr (__is_same(T, bfloat)) return ScalarType::bfloat16;
  constexpr bool is_signed = static_cast<T>(-1) < static_cast<T>(0);
  if constexpr (sizeof(T) == 1) return is_signed ? ScalarType::int8 : ScalarType::uint8;
  if constexpr (sizeof(T) == 2) return is_signed ? ScalarType::int16 : ScalarType::uint16;
  if constexpr (sizeof(T) == 4) return is_signed ? ScalarType::int32 : ScalarType::uint32;
  return is_signed ? ScalarType::int64 : ScalarType::uint64;
}

}  // namespace metalsim
