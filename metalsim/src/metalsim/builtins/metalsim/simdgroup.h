// <metal_simdgroup>: shuffles, votes, reductions and prefix operations over the 32 lanes of a
// simdgroup.
#pragma once

#include "synchronization.h"
#include "vector_operators.h"

namespace metalsim {

template <class T>
METALSIM_INLINE T combine(Collective collective, Combine operation, T value, const char* name,
                          uint32_t site) {
  if constexpr (vector<T>) {
    using Element = element_of<T>;
    Element values[Shape<T>::length];
    for (int index = 0; index < Shape<T>::length; ++index) values[index] = value[index];
    backend::combine(collective, operation, scalar_type<Element>(), values, Shape<T>::length, name,
                     site);
    for (int index = 0; index < Shape<T>::length; ++index) value[index] = values[index];
  } else {
    backend::combine(collective, operation, scalar_type<T>(), &value, 1, name, site);
  }
  return value;
}

// The value that a collective passes on: a swizzle is a vector there.
template <class T>
METALSIM_INLINE constexpr T passed(T value) {
  return value;
}
template <class T, int storage, int... indices>
METALSIM_INLINE constexpr auto passed(Swizzle<T, storage, indices...> value) {
  return at_once(value);
}

template <class T>
METALSIM_INLINE auto shuffle(T value, uint32_t source, const char* name, uint32_t site) {
  return backend::shuffle(passed(value), source, name, site);
}

}  // namespace metalsim

namespace metal {

METALSIM_INLINE ushort __metal_get_thread_index_in_simdgroup(ushort) {
  return static_cast<ushort>(metalsim::backend::lane());
}

// Shuffles. Lanes whose source lies outside the simdgroup keep their own value, as Metal says of up
// and down.
template <class T>
METALSIM_INLINE auto simd_shuffle(T data, ushort lane, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, lane, "simd_shuffle", site);
}
template <class T>
METALSIM_INLINE auto simd_broadcast(T data, ushort lane, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, lane, "simd_broadcast", site);
}
template <class T>
METALSIM_INLINE auto simd_shuffle_xor(T data, ushort mask, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, metalsim::backend::lane() ^ mask, "simd_shuffle_xor", site);
}
template <class T>
METALSIM_INLINE auto simd_shuffle_up(T data, ushort delta, uint site = METALSIM_SITE) {
  const uint lane = metalsim::backend::lane();
  return metalsim::shuffle(data, lane < delta ? lane : lane - delta, "simd_shuffle_up", site);
}
template <class T>
METALSIM_INLINE auto simd_shuffle_down(T data, ushort delta, uint site = METALSIM_SITE) {
  const uint lane = metalsim::backend::lane();
  return metalsim::shuffle(data, lane + delta > 31 ? lane : lane + delta, "simd_shuffle_down",
                           site);
}
template <class T>
METALSIM_INLINE auto simd_shuffle_rotate_up(T data, ushort delta, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, (metalsim::backend::lane() - delta) & 31, "simd_shuffle_rotate_up",
                           site);
}
template <class T>
METALSIM_INLINE auto simd_shuffle_rotate_down(T data, ushort delta, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, (metalsim::backend::lane() + delta) & 31,
                           "simd_shuffle_rotate_down", site);
}
// Where one vector ends the next begins: lanes past the end of `data` take from `filling` (modulo
// lanes wide).
template <class T>
METALSIM_INLINE auto simd_shuffle_and_fill_up(T data, T filling, ushort delta, ushort modulo = 32,
                                              uint site = METALSIM_SITE) {
  const uint lane = metalsim::backend::lane(), start = lane / modulo * modulo;
  const bool fill = lane - start < delta;
  const auto own =
      metalsim::shuffle(data, fill ? lane : lane - delta, "simd_shuffle_and_fill_up", site);
  const auto filled = metalsim::shuffle(filling, fill ? lane + modulo - delta : lane,
                                        "simd_shuffle_and_fill_up", site);
  return fill ? filled : own;
}
template <class T>
METALSIM_INLINE auto simd_shuffle_and_fill_down(T data, T filling, ushort delta, ushort modulo = 32,
                                                uint site = METALSIM_SITE) {
  const uint lane = metalsim::backend::lane(), start = lane / modulo * modulo;
  const bool fill = lane - start + delta >= modulo;
  const auto own =
      metalsim::shuffle(data, fill ? lane : lane + delta, "simd_shuffle_and_fill_down", site);
  const auto filled = metalsim::shuffle(filling, fill ? lane + delta - modulo : lane,
                                        "simd_shuffle_and_fill_down", site);
  return fill ? filled : own;
}

class simd_vote {
 public:
  using vote_t = ulong;
  METALSIM_INLINE explicit constexpr simd_vote(vote_t lanes = 0) : lanes(lanes) {}
  METALSIM_INLINE explicit constexpr operator vote_t() const { return lanes; }
  METALSIM_INLINE constexpr bool any() const { return lanes != 0; }
  METALSIM_INLINE constexpr bool all() const { return lanes == 0xFFFFFFFFu; }

 private:
  vote_t lanes;
};

METALSIM_INLINE simd_vote simd_ballot(bool predicate, uint site = METALSIM_SITE) {
  return simd_vote(metalsim::backend::ballot(predicate, "simd_ballot", site));
}
METALSIM_INLINE simd_vote simd_active_threads_mask(uint site = METALSIM_SITE) {
  return simd_vote(metalsim::backend::ballot(true, "simd_active_threads_mask", site));
}
METALSIM_INLINE bool simd_any(bool predicate, uint site = METALSIM_SITE) {
  return metalsim::backend::ballot(predicate, "simd_any", site) != 0;
}
METALSIM_INLINE bool simd_all(bool predicate, uint site = METALSIM_SITE) {
  return metalsim::backend::ballot(!predicate, "simd_all", site) == 0;
}
METALSIM_INLINE bool simd_is_first(uint site = METALSIM_SITE) {
  const ulong active = metalsim::backend::ballot(true, "simd_is_first", site);
  return metalsim::backend::lane() == static_cast<uint>(__builtin_ctzl(active));
}
METALSIM_INLINE constexpr bool simd_is_helper_thread() { return false; }

template <class T>
METALSIM_INLINE auto simd_broadcast_first(T data, uint site = METALSIM_SITE) {
  const ulong active = metalsim::backend::ballot(true, "simd_broadcast_first", site);
  return metalsim::shuffle(data, static_cast<uint>(__builtin_ctzl(active)), "simd_broadcast_first",
                           site);
}

#define METALSIM_SIMD_COMBINE(name, collective, operation)                                   \
  template <class T>                                                                         \
  METALSIM_INLINE auto name(T data, uint site = METALSIM_SITE) {                             \
    return metalsim::combine(metalsim::Collective::collective, metalsim::Combine::operation, \
                             metalsim::passed(data), #name, site);                           \
  }
METALSIM_SIMD_COMBINE(simd_sum, reduction, sum)
METALSIM_SIMD_COMBINE(simd_product, reduction, product)
METALSIM_SIMD_COMBINE(simd_min, reduction, minimum)
METALSIM_SIMD_COMBINE(simd_max, reduction, maximum)
METALSIM_SIMD_COMBINE(simd_and, reduction, bit_and)
METALSIM_SIMD_COMBINE(simd_or, reduction, bit_or)
METALSIM_SIMD_COMBINE(simd_xor, reduction, bit_xor)
METALSIM_SIMD_COMBINE(simd_prefix_inclusive_sum, inclusive_scan, sum)
METALSIM_SIMD_COMBINE(simd_prefix_exclusive_sum, exclusive_scan, sum)
METALSIM_SIMD_COMBINE(simd_prefix_inclusive_product, inclusive_scan, product)
METALSIM_SIMD_COMBINE(simd_prefix_exclusive_product, exclusive_scan, product)
#undef METALSIM_SIMD_COMBINE

}  // namespace metal

using metal::__metal_get_thread_index_in_simdgroup;
