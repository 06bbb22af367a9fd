// Where checkers listen: memory accesses, barriers, and the life of each threadgroup. Only checking
// builds of the runtime have listeners; in fast builds every call below is empty.
#pragma once

#include "threadgroup.h"

namespace metalsim {

enum class AccessKind : uint32_t { load, store, atomic };

enum class Space : uint32_t {
  device,
  constant,
  threadgroup,
  unbound,  // the stand-in for a buffer that the launch did not bind
  unknown,  // none of the memory that the kernel was given
};

struct Access {
  const unsigned char* address;
  uint32_t bytes;
  AccessKind kind;
  const void* code;  // the instruction after the access
};

struct Region {
  Space space;
  uint32_t index;  // of the buffer, or the threadgroup variable's id
  const unsigned char* base;
  uint64_t bytes;
};

// A checker or counter: any of the calls may be null. All run on the fiber's own stack; a checker
// that finds an error calls fail().
struct Listener {
  void (*begin)(Threadgroup&);
  void (*access)(Fiber&, const Access&, const Region&);
  void (*synchronize)(Fiber&, Scope, uint32_t flags);
  void (*end)(Threadgroup&);
};

#if defined(METALSIM_CHECK)
void notify_begin(Threadgroup& group);
void notify_access(const Access& access);
void notify_synchronize(Fiber* fiber, Scope scope, uint32_t flags);
void notify_end(Threadgroup& group);
#else
inline void notify_begin(Threadgroup&) {}
inline void notify_synchronize(Fiber*, Scope, uint32_t) {}
inline void notify_end(Threadgroup&) {}
#endif

}  // namespace metalsim
