// <metal_compute>: barriers and what they order. The line of each call goes with it into error
// messages.
#pragma once

#include "synchronization_types.h"

namespace metal {

METALSIM_INLINE void threadgroup_barrier(mem_flags flags, uint site = METALSIM_SITE) {
  metalsim::backend::threadgroup_barrier(static_cast<uint>(flags), site);
}
METALSIM_INLINE void threadgroup_barrier(mem_flags flags, thread_scope, uint site = METALSIM_SITE) {
  metalsim::backend::threadgroup_barrier(static_cast<uint>(flags), site);
}
METALSIM_INLINE void simdgroup_barrier(mem_flags flags, uint site = METALSIM_SITE) {
  metalsim::backend::simdgroup_barrier(static_cast<uint>(flags), site);
}
METALSIM_INLINE void simdgroup_barrier(mem_flags flags, thread_scope, uint site = METALSIM_SITE) {
  metalsim::backend::simdgroup_barrier(static_cast<uint>(flags), site);
}

}  // namespace metal
