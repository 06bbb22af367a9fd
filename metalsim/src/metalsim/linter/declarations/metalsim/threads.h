// What threads do together: barriers, simdgroups, quadgroups, atomics, matrices of a simdgroup.
#pragma once

#include <metalsim/simdgroup_matrix_type.h>
#include <metalsim/synchronization_types.h>

namespace metal {

void threadgroup_barrier(mem_flags);
void threadgroup_barrier(mem_flags, thread_scope);
void simdgroup_barrier(mem_flags);
void simdgroup_barrier(mem_flags, thread_scope);
void atomic_thread_fence(mem_flags, memory_order, thread_scope = thread_scope_device);

ushort __metal_get_thread_index_in_simdgroup(ushort);

#define METALSIM_OF_ALL(name) \
  template <class T>          \
  T name(T);
#define METALSIM_OF_LANE(name) \
  template <class T>           \
  T name(T, ushort);
#define METALSIM_VOTE(type, prefix, lanes)                 \
  struct type {                                            \
    using vote_t = lanes;                                  \
    explicit constexpr type(vote_t = 0) METALSIM_THREAD {} \
    explicit constexpr operator vote_t() const;            \
    constexpr bool any() const METALSIM_THREAD;            \
    constexpr bool all() const METALSIM_THREAD;            \
  };                                                       \
  type prefix##_ballot(bool);                              \
  type prefix##_active_threads_mask();                     \
  bool prefix##_any(bool);                                 \
  bool prefix##_all(bool);                                 \
  bool prefix##_is_first();                                \
  METALSIM_OF_ALL(prefix##_broadcast_first)                \
  METALSIM_OF_ALL(prefix##_sum)                            \
  METALSIM_OF_ALL(prefix##_product)                        \
  METALSIM_OF_ALL(prefix##_min)                            \
  METALSIM_OF_ALL(prefix##_max)                            \
  METALSIM_OF_ALL(prefix##_and)                            \
  METALSIM_OF_ALL(prefix##_or)                             \
  METALSIM_OF_ALL(prefix##_xor)                            \
  METALSIM_OF_ALL(prefix##_prefix_inclusive_sum)           \
  METALSIM_OF_ALL(prefix##_prefix_exclusive_sum)           \
  METALSIM_OF_ALL(prefix##_prefix_inclusive_product)       \
  METALSIM_OF_ALL(prefix##_prefix_exclusive_product)       \
  METALSIM_OF_LANE(prefix##_shuffle)                       \
  METALSIM_OF_LANE(prefix##_broadcast)                     \
  METALSIM_OF_LANE(prefix##_shuffle_xor)                   \
  METALSIM_OF_LANE(prefix##_shuffle_up)                    \
  METALSIM_OF_LANE(prefix##_shuffle_down)                  \
  METALSIM_OF_LANE(prefix##_shuffle_rotate_up)             \
  METALSIM_OF_LANE(prefix##_shuffle_rotate_down)
METALSIM_VOTE(simd_vote, simd, ulong)
METALSIM_VOTE(quad_vote, quad, uint)
#undef METALSIM_VOTE
#undef METALSIM_OF_ALL
#undef METALSIM_OF_LANE
bool simd_is_helper_thread();
template <class T>
T simd_shuffle_and_fill_up(T, T, ushort, ushort = 32);
template <class T>
T simd_shuffle_and_fill_down(T, T, ushort, ushort = 32);

#define METALSIM_UPDATE(name, result)                               \
  template <class T, class Operand>                                 \
  result name(volatile __global atomic<T>*, Operand, memory_order); \
  template <class T, class Operand>                                 \
  result name(volatile __local atomic<T>*, Operand, memory_order);
METALSIM_UPDATE(atomic_store_explicit, void)
METALSIM_UPDATE(atomic_exchange_explicit, T)
METALSIM_UPDATE(atomic_fetch_add_explicit, T)
METALSIM_UPDATE(atomic_fetch_sub_explicit, T)
METALSIM_UPDATE(atomic_fetch_and_explicit, T)
METALSIM_UPDATE(atomic_fetch_or_explicit, T)
METALSIM_UPDATE(atomic_fetch_xor_explicit, T)
METALSIM_UPDATE(atomic_fetch_max_explicit, T)
METALSIM_UPDATE(atomic_fetch_min_explicit, T)
METALSIM_UPDATE(atomic_max_explicit, void)
METALSIM_UPDATE(atomic_min_explicit, void)
#undef METALSIM_UPDATE
#define METALSIM_ATOMIC(space)                                                              \
  template <class T>                                                                        \
  T atomic_load_explicit(const volatile space atomic<T>*, memory_order);                    \
  template <class T, class Operand>                                                         \
  bool atomic_compare_exchange_weak_explicit(volatile space atomic<T>*, METALSIM_THREAD T*, \
                                             Operand, memory_order, memory_order);
METALSIM_ATOMIC(__global)
METALSIM_ATOMIC(__local)
#undef METALSIM_ATOMIC

#define METALSIM_MATRIX_MEMORY(space)                                                         \
  template <class T>                                                                          \
  void simdgroup_load(METALSIM_THREAD simdgroup_matrix<T, 8, 8>&, const space T*, ulong = 8,  \
                      ulong2 = 0, bool = false);                                              \
  template <class T>                                                                          \
  void simdgroup_store(const METALSIM_THREAD simdgroup_matrix<T, 8, 8>&, space T*, ulong = 8, \
                       ulong2 = 0, bool = false);
METALSIM_MATRIX_MEMORY(__global)
METALSIM_MATRIX_MEMORY(__local)
#undef METALSIM_MATRIX_MEMORY
template <class T>
void simdgroup_load(METALSIM_THREAD simdgroup_matrix<T, 8, 8>&, const __constant T*, ulong = 8,
                    ulong2 = 0, bool = false);
template <class D, class A, class B, class C>
void simdgroup_multiply_accumulate(METALSIM_THREAD simdgroup_matrix<D, 8, 8>&,
                                   const METALSIM_THREAD simdgroup_matrix<A, 8, 8>&,
                                   const METALSIM_THREAD simdgroup_matrix<B, 8, 8>&,
                                   const METALSIM_THREAD simdgroup_matrix<C, 8, 8>&);
template <class D, class A, class B>
void simdgroup_multiply(METALSIM_THREAD simdgroup_matrix<D, 8, 8>&,
                        const METALSIM_THREAD simdgroup_matrix<A, 8, 8>&,
                        const METALSIM_THREAD simdgroup_matrix<B, 8, 8>&);

}  // namespace metal

using metal::__metal_get_thread_index_in_simdgroup;
