// <metal_compute>: barriers and what they order. The line of each call goes with it into error
// messages.
#pragma once

#include "synchronization_types.h"

namespace metal {

METALSIM_INLINE void threadgroup_barrier(mem_flags flags, uint line = __builtin_LINE()) {
  metalsim::backend::threadgroup_barrier(static_cast<uint>(flags), line);
}
METALSIM_INLINE void threadgroup_barrier(mem_flags flags, thread_scope,
                                         uint line = __builtin_LINE()) {
  metalsim::backend::threadgroup_barrier(static_cast<uint>(flags), line);
}
METALSIM_INLINE void simdgroup_barrier(mem_flags flags, uint line = __builtin_LINE()) {
  metalsim::backend::simdgroup_barrier(static_cast<uint>(flags), line);
}
METALSIM_INLINE void simdgroup_barrier(mem_flags flags, thread_scope,
                                       uint line = __builtin_LINE()) {
  metalsim::backend::simdgroup_barrier(static_cast<uint>(flags), line);
}

}  // namespace metal
