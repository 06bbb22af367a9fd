// The functions that -fsanitize=thread calls around memory accesses, answered here instead of by
// the sanitizer. Only the instrumentation is the sanitizer's; nothing of its runtime is linked.
#include "listener.h"

#if defined(METALSIM_CHECK)

#include <string.h>

using namespace metalsim;

namespace {

void access(const volatile void* address, uint64_t bytes, AccessKind kind, const void* code) {
  notify_access({static_cast<const unsigned char*>(const_cast<const void*>(address)),
                 static_cast<uint32_t>(bytes), kind, code});
}

}  // namespace

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
    access(object, sizeof(type), AccessKind::atomic, METALSIM_CODE);                       \
    return builtin(object, value, __ATOMIC_SEQ_CST);                                       \
  }
#define METALSIM_ATOMICS(bits, type)                                                      \
  METALSIM_API type __tsan_atomic##bits##_load(const volatile type* object, int) {        \
    access(object, sizeof(type), AccessKind::atomic, METALSIM_CODE);                      \
    return __atomic_load_n(object, __ATOMIC_SEQ_CST);                                     \
  }                                                                                       \
  METALSIM_API void __tsan_atomic##bits##_store(volatile type* object, type value, int) { \
    access(object, sizeof(type), AccessKind::atomic, METALSIM_CODE);                      \
    __atomic_store_n(object, value, __ATOMIC_SEQ_CST);                                    \
  }                                                                                       \
  METALSIM_FETCH(bits, type, exchange, __atomic_exchange_n)                               \
  METALSIM_FETCH(bits, type, fetch_add, __atomic_fetch_add)                               \
  METALSIM_FETCH(bits, type, fetch_sub, __atomic_fetch_sub)                               \
  METALSIM_FETCH(bits, type, fetch_and, __atomic_fetch_and)                               \
  METALSIM_FETCH(bits, type, fetch_or, __atomic_fetch_or)                                 \
  METALSIM_FETCH(bits, type, fetch_xor, __atomic_fetch_xor)                               \
  METALSIM_API int __tsan_atomic##bits##_compare_exchange_strong(                         \
      volatile type* object, type* expected, type value, int, int) {                      \
    access(object, sizeof(type), AccessKind::atomic, METALSIM_CODE);                      \
    return __atomic_compare_exchange_n(object, expected, value, false, __ATOMIC_SEQ_CST,  \
                                       __ATOMIC_SEQ_CST);                                 \
  }                                                                                       \
  METALSIM_API int __tsan_atomic##bits##_compare_exchange_weak(                           \
      volatile type* object, type* expected, type value, int, int) {                      \
    access(object, sizeof(type), AccessKind::atomic, METALSIM_CODE);                      \
    return __atomic_compare_exchange_n(object, expected, value, false, __ATOMIC_SEQ_CST,  \
                                       __ATOMIC_SEQ_CST);                                 \
  }                                                                                       \
  METALSIM_API type __tsan_atomic##bits##_compare_exchange_val(                           \
      volatile type* object, type expected, type value, int, int) {                       \
    access(object, sizeof(type), AccessKind::atomic, METALSIM_CODE);                      \
    __atomic_compare_exchange_n(object, &expected, value, false, __ATOMIC_SEQ_CST,        \
                                __ATOMIC_SEQ_CST);                                        \
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
  access(from, bytes, AccessKind::load, METALSIM_CODE);
  access(to, bytes, AccessKind::store, METALSIM_CODE);
  return memcpy(to, from, bytes);
}
METALSIM_API void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  access(from, bytes, AccessKind::load, METALSIM_CODE);
  access(to, bytes, AccessKind::store, METALSIM_CODE);
  return memmove(to, from, bytes);
}
METALSIM_API void* __tsan_memset(void* to, int value, size_t bytes) {
  access(to, bytes, AccessKind::store, METALSIM_CODE);
  return memset(to, value, bytes);
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
