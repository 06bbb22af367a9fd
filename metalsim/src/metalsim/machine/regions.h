// Which memory an address belongs to: what the launch bound, threadgroup variables, or something a
// kernel has no business with.
#pragma once

#include "listener.h"

namespace metalsim {

// False for memory that is no concern of a checker: thread-private arrays, the machine's own, a
// program's constants.
bool find_region(Threadgroup& group, const Access& access, Region& region);

// The buffer or variable nearest below an address, for messages; Space::unknown when there is none.
Region nearest_below(const Threadgroup& group, const unsigned char* address);

// Learns where the kernel's own library lies in memory. Each OS thread calls it once a launch.
#if defined(METALSIM_CHECK)
void locate_program(const metalsim_entry* entry);
#else
inline void locate_program(const metalsim_entry*) {}
#endif

}  // namespace metalsim
