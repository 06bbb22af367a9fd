// <metal_atomic>: atomic scalars in device and threadgroup memory.
#pragma once

#include "common.h"
#include "synchronization.h"

namespace metal {

template <class T>
METALSIM_INLINE T atomic_load_explicit(const volatile atomic<T>* object, memory_order) {
  T result;
  __atomic_load(&object->value, &result, __ATOMIC_RELAXED);
  return result;
}
template <class T>
METALSIM_INLINE void atomic_store_explicit(volatile atomic<T>* object, remove_cvref_t<T> desired,
                                           memory_order) {
  __atomic_store(&object->value, &desired, __ATOMIC_RELAXED);
}
template <class T>
METALSIM_INLINE T atomic_exchange_explicit(volatile atomic<T>* object, remove_cvref_t<T> desired,
                                           memory_order) {
  T result;
  __atomic_exchange(&object->value, &desired, &result, __ATOMIC_RELAXED);
  return result;
}
// Never fails without cause here; on a GPU the weak form may.
template <class T>
METALSIM_INLINE bool atomic_compare_exchange_weak_explicit(volatile atomic<T>* object, T* expected,
                                                           remove_cvref_t<T> desired, memory_order,
                                                           memory_order) {
  return __atomic_compare_exchange(&object->value, expected, &desired, false, __ATOMIC_RELAXED,
                                   __ATOMIC_RELAXED);
}

#define METALSIM_ATOMIC_UPDATE(name, expression)                                                  \
  template <class T>                                                                              \
  METALSIM_INLINE T name(volatile atomic<T>* object, remove_cvref_t<T> operand, memory_order) {   \
    T before, after;                                                                              \
    __atomic_load(&object->value, &before, __ATOMIC_RELAXED);                                     \
    do {                                                                                          \
      after = static_cast<T>(expression);                                                         \
    } while (!__atomic_compare_exchange(&object->value, &before, &after, false, __ATOMIC_RELAXED, \
                                        __ATOMIC_RELAXED));                                       \
    return before;                                                                                \
  }
METALSIM_ATOMIC_UPDATE(atomic_fetch_add_explicit, before + operand)
METALSIM_ATOMIC_UPDATE(atomic_fetch_sub_explicit, before - operand)
METALSIM_ATOMIC_UPDATE(atomic_fetch_and_explicit, before& operand)
METALSIM_ATOMIC_UPDATE(atomic_fetch_or_explicit, before | operand)
METALSIM_ATOMIC_UPDATE(atomic_fetch_xor_explicit, before ^ operand)
METALSIM_ATOMIC_UPDATE(atomic_fetch_max_explicit, metal::max(before, operand))
METALSIM_ATOMIC_UPDATE(atomic_fetch_min_explicit, metal::min(before, operand))
#undef METALSIM_ATOMIC_UPDATE

// The forms without a result, the only ones for 64 bits.
template <class T>
METALSIM_INLINE void atomic_max_explicit(volatile atomic<T>* object, remove_cvref_t<T> operand,
                                         memory_order order) {
  atomic_fetch_max_explicit(object, operand, order);
}
template <class T>
METALSIM_INLINE void atomic_min_explicit(volatile atomic<T>* object, remove_cvref_t<T> operand,
                                         memory_order order) {
  atomic_fetch_min_explicit(object, operand, order);
}

METALSIM_INLINE void atomic_thread_fence(mem_flags flags, memory_order order,
                                         thread_scope scope = thread_scope_device) {
  metalsim::backend::fence(static_cast<uint>(flags), static_cast<uint>(order),
                           static_cast<uint>(scope));
}

}  // namespace metal
