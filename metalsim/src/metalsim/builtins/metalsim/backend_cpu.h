// The CPU engine behind the shim: where a thread stands, how it meets the others, what surrounds a
// kernel. Another engine replaces this file alone.
#pragma once

#include "../../machine/engine.h"

#define METALSIM_INLINE inline __attribute__((always_inline))
// For what moves values between a lane and its simdgroup: checkers have nothing to see there.
#if defined(METALSIM_CHECK)
#define METALSIM_UNOBSERVED inline __attribute__((noinline, no_sanitize("thread")))
#else
#define METALSIM_UNOBSERVED METALSIM_INLINE
#endif
#define METALSIM_DEVICE
#define METALSIM_CONSTANT
#define METALSIM_THREADGROUP
#define METALSIM_THREAD
#define METALSIM_KERNEL static

// The compiler's mathematical function of one float precision.
#define METALSIM_MATH(name) __builtin_##name##f

#define METALSIM_THREADGROUP_VARIABLE(kernel, id, name, ...)                                  \
  using metalsim_type_of_##name = __VA_ARGS__;                                                \
  static_cast<void>(&metalsim::DeclaredVariable<kernel, id, sizeof(metalsim_type_of_##name),  \
                                                alignof(metalsim_type_of_##name)>::declared); \
  metalsim_type_of_##name& name =                                                             \
      *static_cast<metalsim_type_of_##name*>(metalsim::backend::threadgroup_variable(         \
          id, sizeof(metalsim_type_of_##name), alignof(metalsim_type_of_##name), #name))

#define METALSIM_ENTRY(number, arguments, ...)                                           \
  static void metalsim_body_##number() { metalsim::bind(&__VA_ARGS__) arguments; }       \
  extern "C" METALSIM_API const metalsim_entry metalsim_entry_##number;                  \
  const metalsim_entry metalsim_entry_##number = {METALSIM_ABI_VERSION,                  \
                                                  metalsim::buffer_mask arguments,       \
                                                  metalsim::constant_mask arguments,     \
                                                  metalsim::reference_mask(&__VA_ARGS__) \
                                                      arguments,                         \
                                                  &metalsim_body_##number,               \
                                                  &metalsim::threadgroup_bytes<&__VA_ARGS__>};

namespace metalsim {

// The threadgroup variables of one kernel, in the order of their numbers, as the machine allocates
// them. They join when the library is loaded, so that their size is known before any launch.
class ThreadgroupMemory {
 public:
  struct Variable {
    uint32_t id, bytes, alignment;
    Variable* next;
  };

  bool declare(Variable& variable) {
    Variable** place = &first;
    while (*place != nullptr && (*place)->id < variable.id) place = &(*place)->next;
    variable.next = *place;
    *place = &variable;
    return true;
  }
  uint32_t bytes() const {
    uint32_t sum = 0;
    for (const Variable* at = first; at != nullptr; at = at->next)
      sum = (sum + at->alignment - 1) / at->alignment * at->alignment + at->bytes;
    return sum;
  }

 private:
  Variable* first = nullptr;
};

template <auto kernel>
inline ThreadgroupMemory threadgroup_memory;
template <auto kernel>
uint32_t threadgroup_bytes() {
  return threadgroup_memory<kernel>.bytes();
}

template <auto kernel, uint32_t id, uint32_t bytes, uint32_t alignment>
struct DeclaredVariable {
  static inline ThreadgroupMemory::Variable self = {id, bytes, alignment, nullptr};
  static inline const bool declared = threadgroup_memory<kernel>.declare(self);
};

}  // namespace metalsim

namespace metalsim::backend {

// Linkers drop a library that nothing refers to, and a kernel may use no part of the machine.
__attribute__((used)) static int (*const machine)(const metalsim_entry*,
                                                  metalsim_launch*) = metalsim_run;

METALSIM_INLINE Fiber* current() { return metalsim_current_fiber(); }

METALSIM_INLINE uint32_t lane() { return metalsim_current_lane(); }

METALSIM_INLINE void count([[maybe_unused]] Counter counter, [[maybe_unused]] uint64_t amount = 1) {
#if defined(METALSIM_CHECK)
  metalsim_count(counter, amount);
#endif
}

METALSIM_INLINE void* buffer(uint32_t index) { return view(current()).buffers[index]; }

METALSIM_INLINE void* threadgroup_variable(uint32_t id, uint32_t bytes, uint32_t alignment,
                                           const char* name) {
  return metalsim_threadgroup_variable(current(), id, bytes, alignment, name);
}

METALSIM_INLINE void threadgroup_barrier(uint32_t flags, uint32_t site) {
  metalsim_threadgroup_barrier(current(), flags, site);
}

METALSIM_INLINE void agree([[maybe_unused]] uint32_t code, [[maybe_unused]] const char* name,
                           [[maybe_unused]] uint32_t site) {
#if defined(METALSIM_INACTIVE_LANES)
  metalsim_agree(current(), code, name, site);
#endif
}

METALSIM_INLINE void simdgroup_barrier(uint32_t flags, uint32_t site) {
  agree(pack(Collective::barrier, flags & 15), "simdgroup_barrier", site);
  metalsim_simdgroup_barrier(current(), flags, site);
}

METALSIM_INLINE void fence([[maybe_unused]] uint32_t flags, [[maybe_unused]] uint32_t order,
                           [[maybe_unused]] uint32_t scope) {
#if defined(METALSIM_CHECK)
  metalsim_fence(current(), flags, order, scope);
#else
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
#endif
}

template <class T>
METALSIM_INLINE T* exchange(Fiber* fiber) {
  Simdgroup* simd = fiber->simdgroup;
  return reinterpret_cast<T*>(simd->exchange[simd->parity]);
}

// The value of lane `source`; all bits set when that lane takes no part, for which Metal defines
// nothing.
template <class T>
METALSIM_INLINE T shuffle(T value, uint32_t source, const char* name, uint32_t site) {
  agree(pack(Collective::shuffle), name, site);
  Fiber* fiber = current();
  T* values = exchange<T>(fiber);
  static_assert(sizeof(T) * simdgroup_width <= exchange_bytes, "too large a value for a shuffle");
  __builtin_memcpy(static_cast<void*>(&values[lane()]), &value, sizeof(T));
  metalsim_meet(fiber, pack(Collective::shuffle), name, site);
  if (source < simdgroup_width && fiber->simdgroup->active >> source & 1)
    __builtin_memcpy(static_cast<void*>(&value), &values[source], sizeof(T));
  else
    __builtin_memset(static_cast<void*>(&value), 0xFF, sizeof(T));
  return value;
}

// The lanes that took part in the collective that this lane came from last.
METALSIM_INLINE uint32_t active_lanes() { return current()->simdgroup->active; }

// The lanes of this collective whose predicate holds.
METALSIM_INLINE uint64_t ballot(bool predicate, const char* name, uint32_t site) {
  agree(pack(Collective::ballot), name, site);
  Fiber* fiber = current();
  unsigned char* votes = exchange<unsigned char>(fiber);
  votes[lane()] = predicate;
  metalsim_meet(fiber, pack(Collective::ballot), name, site);
  uint64_t mask;
  __builtin_memcpy(&mask, votes, sizeof mask);
  return mask;
}

// Combines `components` scalars over the lanes, in place.
template <class Element>
METALSIM_INLINE void combine(Collective collective, Combine operation, ScalarType type,
                             Element* values, uint32_t components, const char* name,
                             uint32_t site) {
  static_assert(sizeof(Element) <= 8);
  agree(pack(collective, operation, type, components), name, site);
  Fiber* fiber = current();
  Element* shared = exchange<Element>(fiber);
  for (uint32_t index = 0; index < components; ++index)
    shared[index * simdgroup_width + lane()] = values[index];
  metalsim_meet(fiber, pack(collective, operation, type, components), name, site);
  const uint32_t from = collective == Collective::reduction ? 0 : lane();
  for (uint32_t index = 0; index < components; ++index)
    values[index] = shared[index * simdgroup_width + from];
}

template <class T>
METALSIM_INLINE void put_pair(unsigned char* area, uint32_t element, const T* pair) {
  __builtin_memcpy(area + element * sizeof(T), pair, 2 * sizeof(T));
}

// d = a * b + c over the simdgroup; each lane holds two elements of every 8x8 matrix.
template <class D, class A, class B, class C>
METALSIM_INLINE void multiply_accumulate(D* d, const A* a, const B* b, const C* c, uint32_t types,
                                         const char* name, uint32_t site) {
  agree(types, name, site);
  Fiber* fiber = current();
  unsigned char* area = exchange<unsigned char>(fiber);
  const uint32_t element = matrix_row(lane()) * 8 + matrix_column(lane());
  put_pair(area, element, a);
  put_pair(area + matrix_operand_bytes, element, b);
  put_pair(area + 2 * matrix_operand_bytes, element, c);
  metalsim_meet(fiber, types, name, site);
  __builtin_memcpy(d, area + 2 * matrix_operand_bytes + element * sizeof(D), 2 * sizeof(D));
}

METALSIM_INLINE void multiply_tensors(const TensorMultiply& product, uint32_t site) {
  agree(pack(Collective::tensor_multiply), "matmul2d", site);
  Fiber* fiber = current();
  __builtin_memcpy(exchange<unsigned char>(fiber), &product, sizeof product);
  metalsim_meet(fiber, pack(Collective::tensor_multiply), "matmul2d", site);
}

// The workspace of the simdgroup for the operation that begins.
METALSIM_INLINE unsigned char* tensor_workspace(uint32_t) {
  return metalsim_tensor_workspace(current());
}

// A thread enters an operation that all of the `simdgroups` of its threadgroup carry out.
METALSIM_INLINE void enter_scope(uint32_t simdgroups, const char* name, uint32_t site) {
  metalsim_enter_scope(current(), simdgroups, name, site);
}

METALSIM_INLINE void exchange_tensors(const char* name, uint32_t site) {
  agree(pack(Collective::tensor_exchange), name, site);
  metalsim_meet(current(), pack(Collective::tensor_exchange), name, site);
}

struct Position {
  uint32_t x, y, z;
};

METALSIM_INLINE Position position_of(const uint32_t (&axes)[3]) {
  return {axes[0], axes[1], axes[2]};
}

METALSIM_INLINE Position thread_position_in_threadgroup() {
  return position_of(current()->position);
}
METALSIM_INLINE Position threadgroup_position_in_grid() {
  return position_of(view(current()).position);
}
METALSIM_INLINE Position threads_per_threadgroup() { return position_of(view(current()).size); }
METALSIM_INLINE Position dispatch_threads_per_threadgroup() {
  return position_of(view(current()).group);
}
METALSIM_INLINE Position threadgroups_per_grid() { return position_of(view(current()).groups); }
METALSIM_INLINE Position threads_per_grid() { return position_of(view(current()).grid); }
METALSIM_INLINE uint32_t thread_index_in_threadgroup() { return current()->thread; }
METALSIM_INLINE uint32_t simdgroups_per_threadgroup() { return view(current()).simdgroup_count; }

}  // namespace metalsim::backend
