// Which memory an address belongs to: what the launch bound, threadgroup variables, or something a
// kernel has no business with.
#pragma once

#include "listener.h"

namespace metalsim {

// False for memory that is no concern of a checker: the machine's own, a program's constants.
bool find_region(const Fiber& fiber, const Access& access, Region& region);

// The buffer or variable nearest to an address, for messages; Space::unknown when there is none.
Region nearest(const Fiber& fiber, const unsigned char* address);

// private_arrays.cpp: the same for addresses in the machine's own memory, and whether an address
// lies in or beside a watched array of the fiber.
bool find_private(const Fiber& fiber, const Access& access, Region& region);
bool in_gap(const Fiber& fiber, const unsigned char* address, uint64_t bytes);

// One piece of device memory: buffers that overlap are one.
struct Memory {
  const unsigned char* base;
  uint64_t bytes;
};

// The pieces of the launch that runs on this OS thread, by Region::memory.
struct Memories {
  const Memory* pieces;
  uint32_t count;
};
Memories device_memories();

// The offset of an address from where the kernel's library was loaded; 0 outside it.
uint64_t code_offset(const void* code);

// Learns what a launch bound and where the kernel's own library lies. Each OS thread calls both
// once a launch. False: no memory.
bool open_regions(const Threadgroup& group);
void close_regions();

}  // namespace metalsim
