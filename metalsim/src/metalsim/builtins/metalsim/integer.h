// <metal_integer>: bits, saturating and wide arithmetic, on scalars and vectors.
#pragma once

#include "math.h"

namespace metalsim {

template <class T>
using unsigned_of = metal::make_unsigned_t<T>;

template <class T>
concept integer = is_integer<T> && !__is_same(T, bool);

template <class T>
constexpr int bit_count = static_cast<int>(8 * sizeof(T));

}  // namespace metalsim

namespace metal {

template <metalsim::integer T>
METALSIM_INLINE constexpr T popcount(T x) {
  return static_cast<T>(__builtin_popcountll(static_cast<metalsim::unsigned_of<T>>(x)));
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T clz(T x) {
  const unsigned long long bits = static_cast<metalsim::unsigned_of<T>>(x);
  const int width = metalsim::bit_count<T>;
  return static_cast<T>(bits == 0 ? width : __builtin_clzll(bits) - (64 - width));
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T ctz(T x) {
  const unsigned long long bits = static_cast<metalsim::unsigned_of<T>>(x);
  return static_cast<T>(bits == 0 ? metalsim::bit_count<T> : __builtin_ctzll(bits));
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T reverse_bits(T x) {
  metalsim::unsigned_of<T> reversed = 0;
  for (int bit = 0; bit < metalsim::bit_count<T>; ++bit)
    reversed = static_cast<metalsim::unsigned_of<T>>(reversed << 1 | (x >> bit & 1));
  return static_cast<T>(reversed);
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T rotate(T x, T amount) {
  using Bits = metalsim::unsigned_of<T>;
  const int width = metalsim::bit_count<T>, shift = static_cast<int>(amount & (width - 1));
  const Bits bits = static_cast<Bits>(x);
  return static_cast<T>(bits << shift | bits >> (-shift & (width - 1)));
}
METALSIM_VECTOR_1(popcount)
METALSIM_VECTOR_1(clz)
METALSIM_VECTOR_1(ctz)
METALSIM_VECTOR_1(reverse_bits)
METALSIM_VECTOR_2(rotate)

template <metalsim::integer T>
METALSIM_INLINE constexpr T addsat(T x, T y) {
  T sum{};
  if (!__builtin_add_overflow(x, y, &sum)) return sum;
  return x < 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T subsat(T x, T y) {
  T difference{};
  if (!__builtin_sub_overflow(x, y, &difference)) return difference;
  return y > 0 ? numeric_limits<T>::min() : numeric_limits<T>::max();
}
// (x + y) >> 1 and (x + y + 1) >> 1, without overflow.
template <metalsim::integer T>
METALSIM_INLINE constexpr T hadd(T x, T y) {
  return static_cast<T>((static_cast<__int128>(x) + y) >> 1);
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T rhadd(T x, T y) {
  return static_cast<T>((static_cast<__int128>(x) + y + 1) >> 1);
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T mulhi(T x, T y) {
  using Wide = conditional_t<is_signed_v<T>, __int128, unsigned __int128>;
  return static_cast<T>(static_cast<Wide>(x) * static_cast<Wide>(y) >> metalsim::bit_count<T>);
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T madhi(T x, T y, T z) {
  return static_cast<T>(mulhi(x, y) + z);
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T madsat(T x, T y, T z) {
  using Wide = conditional_t<is_signed_v<T>, __int128, unsigned __int128>;
  const Wide sum = static_cast<Wide>(x) * static_cast<Wide>(y) + static_cast<Wide>(z);
  if (sum > static_cast<Wide>(numeric_limits<T>::max())) return numeric_limits<T>::max();
  if (sum < static_cast<Wide>(numeric_limits<T>::min())) return numeric_limits<T>::min();
  return static_cast<T>(sum);
}
template <metalsim::integer T>
METALSIM_INLINE constexpr metalsim::unsigned_of<T> absdiff(T x, T y) {
  using Bits = metalsim::unsigned_of<T>;
  return static_cast<Bits>(x < y ? static_cast<Bits>(y) - static_cast<Bits>(x)
                                 : static_cast<Bits>(x) - static_cast<Bits>(y));
}
METALSIM_VECTOR_2(addsat)
METALSIM_VECTOR_2(subsat)
METALSIM_VECTOR_2(hadd)
METALSIM_VECTOR_2(rhadd)
METALSIM_VECTOR_2(mulhi)
METALSIM_VECTOR_2(absdiff)
METALSIM_VECTOR_3(madhi)
METALSIM_VECTOR_3(madsat)

METALSIM_INLINE constexpr int mul24(int x, int y) { return (x << 8 >> 8) * (y << 8 >> 8); }
METALSIM_INLINE constexpr uint mul24(uint x, uint y) { return (x & 0xFFFFFFu) * (y & 0xFFFFFFu); }
METALSIM_INLINE constexpr int mad24(int x, int y, int z) { return mul24(x, y) + z; }
METALSIM_INLINE constexpr uint mad24(uint x, uint y, uint z) { return mul24(x, y) + z; }

template <metalsim::integer T>
METALSIM_INLINE constexpr T extract_bits(T x, uint offset, uint bits) {
  using Bits = metalsim::unsigned_of<T>;
  const uint width = static_cast<uint>(metalsim::bit_count<T>);
  if (bits == 0 || offset >= width) return 0;
  const uint unused = width - bits;
  return static_cast<T>(
      static_cast<T>(static_cast<Bits>(static_cast<Bits>(x) << (unused - offset))) >> unused);
}
template <metalsim::integer T>
METALSIM_INLINE constexpr T insert_bits(T base, T insert, uint offset, uint bits) {
  using Bits = metalsim::unsigned_of<T>;
  if (bits == 0) return base;
  const Bits all = static_cast<Bits>(~static_cast<Bits>(0));
  const Bits mask =
      static_cast<Bits>(static_cast<Bits>(all >> (metalsim::bit_count<T> - bits)) << offset);
  return static_cast<T>((static_cast<Bits>(base) & ~mask) |
                        (static_cast<Bits>(static_cast<Bits>(insert) << offset) & mask));
}

}  // namespace metal
