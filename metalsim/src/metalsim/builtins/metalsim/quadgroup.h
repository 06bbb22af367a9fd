// Quadgroups: four neighbouring lanes. All lanes of the simdgroup must reach the call together
// here, which is more than Metal asks.
#pragma once

#include "common.h"
#include "simdgroup.h"

namespace metalsim {

// The lane of this quadgroup at `index`, as a lane of the simdgroup.
METALSIM_INLINE uint32_t quad_lane(uint32_t index) { return (backend::lane() & ~3u) + index; }

// Of the quadgroup's lanes, those that took part in the latest collective.
METALSIM_INLINE uint32_t quad_active() { return backend::active_lanes() >> quad_lane(0) & 15; }

// Folds the values of a quadgroup in one order on every lane, so that all get the same bits.
template <class T, class Operation>
METALSIM_INLINE T quad_fold(T data, const char* name, uint32_t site, Operation operation) {
  T values[4];
  for (uint32_t index = 0; index < 4; ++index)
    values[index] = shuffle(data, quad_lane(index), name, site);
  const uint32_t active = quad_active();
  if (active == 15)
    return operation(operation(values[0], values[1]), operation(values[2], values[3]));
  uint32_t index = static_cast<uint32_t>(__builtin_ctz(active));
  T result = values[index];
  while (++index < 4)
    if (active >> index & 1) result = operation(result, values[index]);
  return result;
}

template <class T, class Operation>
METALSIM_INLINE T quad_scan(T data, int neutral, bool inclusive, const char* name, uint32_t site,
                            Operation operation) {
  T running = T(neutral);
  const uint32_t own = backend::lane() % 4;
  for (uint32_t index = 0; index < 4; ++index) {
    const T value = shuffle(data, quad_lane(index), name, site);
    if (!(quad_active() >> index & 1)) continue;
    if (index < own || (inclusive && index == own)) running = operation(running, value);
  }
  return running;
}

}  // namespace metalsim

namespace metal {

template <class T>
METALSIM_INLINE auto quad_shuffle(T data, ushort lane, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, metalsim::quad_lane(lane & 3), "quad_shuffle", site);
}
template <class T>
METALSIM_INLINE auto quad_broadcast(T data, ushort lane, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, metalsim::quad_lane(lane & 3), "quad_broadcast", site);
}
template <class T>
METALSIM_INLINE auto quad_broadcast_first(T data, uint site = METALSIM_SITE) {
  const ulong active = metalsim::backend::ballot(true, "quad_broadcast_first", site);
  const uint first = static_cast<uint>(__builtin_ctzl(active >> metalsim::quad_lane(0)));
  return metalsim::shuffle(data, metalsim::quad_lane(first), "quad_broadcast_first", site);
}
template <class T>
METALSIM_INLINE auto quad_shuffle_xor(T data, ushort mask, uint site = METALSIM_SITE) {
  return metalsim::shuffle(data, metalsim::backend::lane() ^ (mask & 3), "quad_shuffle_xor", site);
}
template <class T>
METALSIM_INLINE auto quad_shuffle_up(T data, ushort delta, uint site = METALSIM_SITE) {
  const uint own = metalsim::backend::lane() % 4, source = own < delta ? own : own - delta;
  return metalsim::shuffle(data, metalsim::quad_lane(source), "quad_shuffle_up", site);
}
template <class T>
METALSIM_INLINE auto quad_shuffle_down(T data, ushort delta, uint site = METALSIM_SITE) {
  const uint own = metalsim::backend::lane() % 4, source = own + delta > 3 ? own : own + delta;
  return metalsim::shuffle(data, metalsim::quad_lane(source), "quad_shuffle_down", site);
}
template <class T>
METALSIM_INLINE auto quad_shuffle_rotate_up(T data, ushort delta, uint site = METALSIM_SITE) {
  const uint source = (metalsim::backend::lane() - delta) & 3;
  return metalsim::shuffle(data, metalsim::quad_lane(source), "quad_shuffle_rotate_up", site);
}
template <class T>
METALSIM_INLINE auto quad_shuffle_rotate_down(T data, ushort delta, uint site = METALSIM_SITE) {
  const uint source = (metalsim::backend::lane() + delta) & 3;
  return metalsim::shuffle(data, metalsim::quad_lane(source), "quad_shuffle_rotate_down", site);
}

class quad_vote {
 public:
  using vote_t = uint;
  METALSIM_INLINE explicit constexpr quad_vote(vote_t lanes = 0) : lanes(lanes) {}
  METALSIM_INLINE explicit constexpr operator vote_t() const { return lanes; }
  METALSIM_INLINE constexpr bool any() const { return lanes != 0; }
  METALSIM_INLINE constexpr bool all() const { return lanes == 15; }

 private:
  vote_t lanes;
};

METALSIM_INLINE quad_vote quad_ballot(bool predicate, uint site = METALSIM_SITE) {
  const ulong lanes = metalsim::backend::ballot(predicate, "quad_ballot", site);
  return quad_vote(static_cast<uint>(lanes >> metalsim::quad_lane(0) & 15));
}
METALSIM_INLINE quad_vote quad_active_threads_mask(uint site = METALSIM_SITE) {
  const ulong lanes = metalsim::backend::ballot(true, "quad_active_threads_mask", site);
  return quad_vote(static_cast<uint>(lanes >> metalsim::quad_lane(0) & 15));
}
METALSIM_INLINE bool quad_any(bool predicate, uint site = METALSIM_SITE) {
  const ulong lanes = metalsim::backend::ballot(predicate, "quad_any", site);
  return (lanes >> metalsim::quad_lane(0) & 15) != 0;
}
METALSIM_INLINE bool quad_all(bool predicate, uint site = METALSIM_SITE) {
  const ulong lanes = metalsim::backend::ballot(!predicate, "quad_all", site);
  return (lanes >> metalsim::quad_lane(0) & 15) == 0;
}
METALSIM_INLINE bool quad_is_first(uint site = METALSIM_SITE) {
  const ulong lanes = metalsim::backend::ballot(true, "quad_is_first", site);
  return metalsim::backend::lane() ==
         metalsim::quad_lane(static_cast<uint>(__builtin_ctzl(lanes >> metalsim::quad_lane(0))));
}

#define METALSIM_QUAD_FOLD(name, expression)                                            \
  template <class T>                                                                    \
  METALSIM_INLINE auto name(T data, uint site = METALSIM_SITE) {                        \
    return metalsim::quad_fold(metalsim::passed(data), #name, site,                     \
                               [](auto x, auto y) { return decltype(x)(expression); }); \
  }
METALSIM_QUAD_FOLD(quad_sum, x + y)
METALSIM_QUAD_FOLD(quad_product, x* y)
METALSIM_QUAD_FOLD(quad_min, metal::min(x, y))
METALSIM_QUAD_FOLD(quad_max, metal::max(x, y))
METALSIM_QUAD_FOLD(quad_and, x& y)
METALSIM_QUAD_FOLD(quad_or, x | y)
METALSIM_QUAD_FOLD(quad_xor, x ^ y)
#undef METALSIM_QUAD_FOLD

#define METALSIM_QUAD_SCAN(name, neutral, inclusive, op)                                \
  template <class T>                                                                    \
  METALSIM_INLINE auto name(T data, uint site = METALSIM_SITE) {                        \
    return metalsim::quad_scan(metalsim::passed(data), neutral, inclusive, #name, site, \
                               [](auto x, auto y) { return decltype(x)(x op y); });     \
  }
METALSIM_QUAD_SCAN(quad_prefix_inclusive_sum, 0, true, +)
METALSIM_QUAD_SCAN(quad_prefix_exclusive_sum, 0, false, +)
METALSIM_QUAD_SCAN(quad_prefix_inclusive_product, 1, true, *)
METALSIM_QUAD_SCAN(quad_prefix_exclusive_product, 1, false, *)
#undef METALSIM_QUAD_SCAN

}  // namespace metal
