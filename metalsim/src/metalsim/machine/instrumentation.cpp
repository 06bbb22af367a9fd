// The functions that -fsanitize=thread calls around memory accesses, answered here instead of by
// the sanitizer. Only the instrumentation is the sanitizer's; nothing of its runtime is linked.
#include "regions.h"

#if defined(METALSIM_CHECK)

#include <string.h>
#include <unistd.h>

using namespace metalsim;

namespace {

// The hooks of plain accesses cannot keep the kernel from what it does next. A refused access is
// carried out on memory that is put back, filled with NaN for loads, before anything else happens.
struct Refused {
  unsigned char* address;
  uint32_t bytes;
  unsigned char content[64];
};
__thread Refused refused;

// Whether memory can be read and written: system calls give an error where the kernel would crash.
bool is_accessible(unsigned char* address, uint32_t bytes) {
  int ends[2];
  if (pipe(ends) != 0) return false;
  const auto size = static_cast<ssize_t>(bytes);
  const bool accessible =
      write(ends[1], address, bytes) == size && read(ends[0], address, bytes) == size;
  close(ends[0]);
  close(ends[1]);
  return accessible;
}

// Of the machine's own memory only the gaps around arrays are nobody's.
bool is_machine(const unsigned char* address, uint32_t bytes) {
  const Threadgroup& group = *running_fiber->threadgroup;
  return static_cast<uint64_t>(address - group.stacks) <
             group.memory_bytes - static_cast<uint64_t>(group.stacks - group.memory) &&
         !in_gap(*running_fiber, address, bytes);
}

void refuse(unsigned char* address, uint32_t bytes, AccessKind kind) {
  if (bytes > sizeof refused.content || is_machine(address, bytes) ||
      !is_accessible(address, bytes))
    retire(running_fiber);
  refused.address = address;
  refused.bytes = bytes;
  memcpy(refused.content, address, bytes);
  if (kind == AccessKind::load) memset(address, 0xFF, bytes);
}

bool is_allowed(const volatile void* address, uint64_t bytes, AccessKind kind, const void* code) {
  settle_access();
  return notify_access({static_cast<const unsigned char*>(const_cast<const void*>(address)),
                        static_cast<uint32_t>(bytes), kind, code});
}

void access(void* address, uint64_t bytes, AccessKind kind, const void* code) {
  if (!is_allowed(address, bytes, kind, code)) [[unlikely]]
    refuse(static_cast<unsigned char*>(address), static_cast<uint32_t>(bytes), kind);
}

// The bytes that a refused load gives: NaN.
template <class T>
T nothing() {
  return static_cast<T>(~T{0});
}

// A failed exchange is a load. Threads of a launch with checks run one at a time, so what is read
// first still holds.
template <class T>
int exchange_if(volatile T* object, T* expected, T value, const void* code) {
  if (!is_allowed(object, sizeof(T), AccessKind::atomic_load, code)) return 1;
  const bool succeeds = __atomic_load_n(object, __ATOMIC_SEQ_CST) == *expected;
  if (succeeds && !is_allowed(object, sizeof(T), AccessKind::atomic, code)) return 1;
  return __atomic_compare_exchange_n(object, expected, value, false, __ATOMIC_SEQ_CST,
                                     __ATOMIC_SEQ_CST);
}

// memcpy and memmove go wrong on either side alone.
bool may_copy(void* to, const void* from, size_t bytes, const void* code) {
  const bool may_load = is_allowed(from, bytes, AccessKind::load, code);
  const bool may_store = is_allowed(to, bytes, AccessKind::store, code);
  if (!may_load && may_store) memset(to, 0xFF, bytes);
  return may_load && may_store;
}

}  // namespace

void metalsim::settle_access() {
  if (refused.bytes == 0) [[likely]]
    return;
  memcpy(refused.address, refused.content, refused.bytes);
  refused.bytes = 0;
}

#define METALSIM_CODE __builtin_return_address(0)
#define METALSIM_HOOK(name, bytes, kind) \
  METALSIM_API void name(void* address) { access(address, bytes, AccessKind::kind, METALSIM_CODE); }
#define METALSIM_HOOK_BOTH(name, bytes)                       \
  METALSIM_API void name(void* address) {                     \
    access(address, bytes, AccessKind::load, METALSIM_CODE);  \
    access(address, bytes, AccessKind::store, METALSIM_CODE); \
  }
#define METALSIM_HOOKS(bytes)                                         \
  METALSIM_HOOK(__tsan_read##bytes, bytes, load)                      \
  METALSIM_HOOK(__tsan_write##bytes, bytes, store)                    \
  METALSIM_HOOK(__tsan_unaligned_read##bytes, bytes, load)            \
  METALSIM_HOOK(__tsan_unaligned_write##bytes, bytes, store)          \
  METALSIM_HOOK(__tsan_volatile_read##bytes, bytes, load)             \
  METALSIM_HOOK(__tsan_volatile_write##bytes, bytes, store)           \
  METALSIM_HOOK(__tsan_unaligned_volatile_read##bytes, bytes, load)   \
  METALSIM_HOOK(__tsan_unaligned_volatile_write##bytes, bytes, store) \
  METALSIM_HOOK_BOTH(__tsan_read_write##bytes, bytes)                 \
  METALSIM_HOOK_BOTH(__tsan_unaligned_read_write##bytes, bytes)

#define METALSIM_FETCH(bits, type, name, builtin)                                          \
  METALSIM_API type __tsan_atomic##bits##_##name(volatile type* object, type value, int) { \
    if (!is_allowed(object, sizeof(type), AccessKind::atomic, METALSIM_CODE))              \
      return nothing<type>();                                                              \
    return builtin(object, value, __ATOMIC_SEQ_CST);                                       \
  }
#define METALSIM_ATOMICS(bits, type)                                                      \
  METALSIM_API type __tsan_atomic##bits##_load(const volatile type* object, int) {        \
    if (!is_allowed(object, sizeof(type), AccessKind::atomic_load, METALSIM_CODE))        \
      return nothing<type>();                                                             \
    return __atomic_load_n(object, __ATOMIC_SEQ_CST);                                     \
  }                                                                                       \
  METALSIM_API void __tsan_atomic##bits##_store(volatile type* object, type value, int) { \
    if (is_allowed(object, sizeof(type), AccessKind::atomic_store, METALSIM_CODE))        \
      __atomic_store_n(object, value, __ATOMIC_SEQ_CST);                                  \
  }                                                                                       \
  METALSIM_FETCH(bits, type, exchange, __atomic_exchange_n)                               \
  METALSIM_FETCH(bits, type, fetch_add, __atomic_fetch_add)                               \
  METALSIM_FETCH(bits, type, fetch_sub, __atomic_fetch_sub)                               \
  METALSIM_FETCH(bits, type, fetch_and, __atomic_fetch_and)                               \
  METALSIM_FETCH(bits, type, fetch_or, __atomic_fetch_or)                                 \
  METALSIM_FETCH(bits, type, fetch_xor, __atomic_fetch_xor)                               \
  METALSIM_API int __tsan_atomic##bits##_compare_exchange_strong(                         \
      volatile type* object, type* expected, type value, int, int) {                      \
    return exchange_if(object, expected, value, METALSIM_CODE);                           \
  }                                                                                       \
  METALSIM_API int __tsan_atomic##bits##_compare_exchange_weak(                           \
      volatile type* object, type* expected, type value, int, int) {                      \
    return exchange_if(object, expected, value, METALSIM_CODE);                           \
  }                                                                                       \
  METALSIM_API type __tsan_atomic##bits##_compare_exchange_val(                           \
      volatile type* object, type expected, type value, int, int) {                       \
    exchange_if(object, &expected, value, METALSIM_CODE);                                 \
    return expected;                                                                      \
  }

extern "C" {

METALSIM_HOOKS(1)
METALSIM_HOOKS(2)
METALSIM_HOOKS(4)
METALSIM_HOOKS(8)
METALSIM_HOOKS(16)

METALSIM_ATOMICS(8, uint8_t)
METALSIM_ATOMICS(16, uint16_t)
METALSIM_ATOMICS(32, uint32_t)
METALSIM_ATOMICS(64, uint64_t)

METALSIM_API void __tsan_read_range(void* address, unsigned long bytes) {
  access(address, bytes, AccessKind::load, METALSIM_CODE);
}
METALSIM_API void __tsan_write_range(void* address, unsigned long bytes) {
  access(address, bytes, AccessKind::store, METALSIM_CODE);
}
METALSIM_API void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  return may_copy(to, from, bytes, METALSIM_CODE) ? memcpy(to, from, bytes) : to;
}
METALSIM_API void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  return may_copy(to, from, bytes, METALSIM_CODE) ? memmove(to, from, bytes) : to;
}
METALSIM_API void* __tsan_memset(void* to, int value, size_t bytes) {
  const bool may_store = is_allowed(to, bytes, AccessKind::store, METALSIM_CODE);
  return may_store ? memset(to, value, bytes) : to;
}

METALSIM_API void __tsan_init() {}
METALSIM_API void __tsan_func_entry(void*) {}
METALSIM_API void __tsan_func_exit() {}
METALSIM_API void __tsan_vptr_read(void**) {}
METALSIM_API void __tsan_vptr_update(void**, void*) {}
METALSIM_API void __tsan_atomic_thread_fence(int) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
METALSIM_API void __tsan_atomic_signal_fence(int) {}
}

#endif
