// Where checkers listen: memory accesses, barriers, and the life of each launch and threadgroup.
// Only checking builds of the runtime have listeners; in fast builds every call below is empty.
#pragma once

#include "threadgroup.h"

namespace metalsim {

// The last is for what instrumentation does not tell.
enum class AccessKind : uint32_t { load, store, atomic, atomic_load, atomic_store, use };

enum class Space : uint32_t {
  device,
  constant,
  threadgroup,
  thread,
  unknown,  // none of the memory that the kernel was given
  unbound,  // the stand-in for a buffer that the launch did not bind
};

struct Access {
  const unsigned char* address;
  uint32_t bytes;
  AccessKind kind;
  const void* code;  // the instruction after the access
};

inline constexpr uint32_t no_item = ~0u;

struct Region {
  Space space;
  uint32_t index;   // of the buffer, or the threadgroup variable's id
  uint32_t item;    // in the list of tensors that the buffer is, else no_item
  uint32_t memory;  // of device memory: the piece it is in, see regions.h
  const unsigned char* base;
  uint64_t bytes;
  const PrivateArray* array = nullptr;  // of Space::thread
};

// A checker or counter: any of the calls may be null. A launch with checks runs on one OS thread,
// and so do all its calls; those after begin_launch run on the stack of the fiber, if there is one.
struct Listener {
  uint32_t check;  // the bit of metalsim_launch::checks that turns it on; 0: always on
  bool (*begin_launch)(Threadgroup&);  // false: no memory
  void (*begin)(Threadgroup&);
  bool (*access)(Fiber&, const Access&, const Region&);  // false: it must not be carried out
  void (*synchronize)(Fiber&, Scope, uint32_t flags);    // once a release, before anyone goes on
  void (*end)(Threadgroup&);
  void (*end_launch)();
};

#if defined(METALSIM_CHECK)
bool notify_begin_launch(Threadgroup& group);
void notify_begin(Threadgroup& group);
bool notify_access(const Access& access);
void notify_synchronize(Fiber* fiber, Scope scope, uint32_t flags);
void notify_end(Threadgroup& group);
void notify_end_launch(Threadgroup& group);
// instrumentation.cpp: undoes what an access that was refused did to memory.
void settle_access();
#else
inline bool notify_begin_launch(Threadgroup&) { return true; }
inline void notify_begin(Threadgroup&) {}
inline void notify_synchronize(Fiber*, Scope, uint32_t) {}
inline void notify_end(Threadgroup&) {}
inline void notify_end_launch(Threadgroup&) {}
inline void settle_access() {}
#endif

}  // namespace metalsim
