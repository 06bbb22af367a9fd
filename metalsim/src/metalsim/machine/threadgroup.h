// One threadgroup as the runtime sees it, and the calls between the runtime's parts.
#pragma once

#include "engine.h"

namespace metalsim {

enum class Scope : uint32_t { threadgroup, simdgroup };

// splitmix64: one addition and three mixing steps a number.
struct Random {
  uint64_t state;

  uint64_t next() {
    uint64_t mixed = state += 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
    return mixed ^ mixed >> 31;
  }

  uint32_t below(uint32_t bound) { return static_cast<uint32_t>((next() >> 32) * bound >> 32); }
};

struct Threadgroup : ThreadgroupView {
  Fiber* fibers;
  Simdgroup* simdgroups;
  const metalsim_entry* entry;
  metalsim_launch* launch;
  void* main_context;
  uint32_t runnable_simdgroups;  // bit i: simdgroup i has runnable lanes
  uint32_t returned;             // threads
  uint32_t arrived;              // threads at the pending threadgroup barrier
  uint32_t retired;              // of those returned: the ones that were made to
  const Fiber* barrier_first;    // to reach it, and its code
  const void* barrier_caller;
  uint32_t barrier_flags;
  bool barrier_mismatch;
  bool randomize;
  uint32_t stickiness;  // of 8: how often a random order stays in the same simdgroup
  Random random;

  unsigned char* arena;  // threadgroup memory
  uint32_t arena_used;
  uint32_t declared_bytes;
  uint32_t declared_count;
  uint16_t declared[max_variables];  // ids, in the order of allocation

  unsigned char* workspaces;  // of the simdgroups
  unsigned char* stacks;
  uint64_t stack_stride;
  const unsigned char* memory;  // the mapping that holds all of this
  uint64_t memory_bytes;
  const unsigned char*
      unbound;  // zeros that stand in for unbound buffers, unbound_bytes each; may be null
  char error[sizeof metalsim_launch::error];
  char error_kind[sizeof metalsim_launch::error_kind];
};

inline constexpr uint32_t arena_gap =  // around each variable, so that stray accesses are noticed
#if defined(METALSIM_CHECK)
    256;
#else
    0;
#endif
inline constexpr uint64_t unbound_bytes = 1 << 20;
inline constexpr uint32_t arena_bytes =
    max_threadgroup_bytes + (max_variables + 1) * (arena_gap + 16);

// scheduler.cpp: the fiber that runs on this OS thread, null outside kernels.
extern __thread Fiber* running_fiber;

// Runs all threads of a prepared threadgroup, to the end or to the first error.
void run_threadgroup(Threadgroup& group);

// Ends a thread that cannot go on; the others need not wait for it.
[[noreturn]] void retire(Fiber* fiber);

inline Collective collective_of(uint32_t code) { return static_cast<Collective>(code & 0xFF); }

inline bool needs_full_simdgroup(Collective collective) {
  return collective == Collective::matrix_multiply || collective == Collective::tensor_multiply ||
         collective == Collective::tensor_exchange;
}

// Metal lets the lanes that are left combine values when others returned, but barriers and matrices
// need all.
inline bool needs_every_lane(uint32_t code) {
  return collective_of(code) == Collective::barrier || needs_full_simdgroup(collective_of(code));
}

inline bool same_name(const char* a, const char* b) {
  return a == b || __builtin_strcmp(a, b) == 0;
}

// collectives.cpp: carries out simd.code for the lanes in simd.active.
void carry_out(Simdgroup& simd, unsigned char* exchange);

// tensor_operations.cpp: the product that the exchange area describes, and whether every simdgroup
// took part in the operations of several.
void multiply_tensors(Simdgroup& simd, const unsigned char* exchange);
void check_scopes(Threadgroup& group);

// divergence.cpp: makes runnable those of the undecided lanes that go first, if any may.
void decide(Threadgroup& group, Simdgroup& simd);

// Whether two fibers that wait at one site came there through the same calls, where that is known.
bool is_same_way(const Fiber& a, const Fiber& b);

// Checking builds know it at every rendezvous; others have no time to look.
#if defined(METALSIM_CHECK) && defined(__clang__)
inline void note_frame(Fiber* fiber, const void* frame) { fiber->frame = frame; }
inline bool came_alike(const Fiber& a, const Fiber& b) { return is_same_way(a, b); }
#else
inline void note_frame(Fiber*, const void*) {}
inline bool came_alike(const Fiber&, const Fiber&) { return true; }
#endif

// variables.cpp
void forget_variables(Threadgroup& group);

// diagnostics.cpp: keeps the first error of the threadgroup.
void set_error(Threadgroup& group, const char* kind, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
// The same, then leaves the threadgroup for good. Only a running fiber may call it.
[[noreturn]] void fail(Threadgroup& group, const char* kind, const char* format, ...)
    __attribute__((format(printf, 3, 4)));
void report_divergence(Threadgroup& group);

}  // namespace metalsim
