// Counters, and in a launch that profiles what each instruction adds to them.
#pragma once

#include "listener.h"

namespace metalsim {

#if defined(METALSIM_CHECK)
// Adds to a counter, for the call that returns to `code`.
void count(Threadgroup& group, Counter counter, uint64_t amount, const void* code);

// All lanes of a simdgroup stand at a collective or a barrier, or returned: the accesses before it
// are complete.
void close_accesses(Threadgroup& group, Simdgroup& simd);
#else
inline void count(Threadgroup& group, Counter counter, uint64_t amount, const void*) {
  group.counters[counter] += amount;
}
inline void close_accesses(Threadgroup&, Simdgroup&) {}
#endif

}  // namespace metalsim
