// What threads tell one another through fences and atomic operations: the accesses before a release
// fence are ordered before those behind an acquire fence, if an atomic operation behind the first
// writes what an atomic operation in front of the second reads. (C++ [atomics.fences], which MSL
// 3.2 takes over.)
#pragma once

#include "checkers.h"

namespace metalsim {

enum Ordered : uint32_t { threadgroup_memory, device_memory };

// The accesses that are ordered before a moment of a thread. Times are those of races.cpp.
struct Past {
  uint64_t group_start;
  uint64_t time;
  uint64_t group_time[2];
  uint64_t simdgroup_time[2];
  uint32_t thread;

  bool contains(uint64_t access_time, uint32_t access_thread, Ordered memory) const {
    if (access_time < group_start || access_time >= time) return false;
    return access_thread == thread || access_time < group_time[memory] ||
           (access_thread / simdgroup_width == thread / simdgroup_width &&
            access_time < simdgroup_time[memory]);
  }
};

// What an atomic variable carries, and what a thread has heard.
struct Word;

bool open_fences();
void close_fences();
// A threadgroup begins: its threads have heard nothing.
void forget_words();

// Whether any thread has come to a fence in this launch: all below is idle until then.
bool are_words_spoken();

void pass_fence(Threadgroup& group, const Past& past, uint32_t flags, uint32_t order,
                uint32_t scope);
// An atomic operation on a variable that carries `word`: what it carries now.
const Word* pass_word(Threadgroup& group, uint32_t thread, AccessKind kind, const Word* word);
// The threads from `first` to `last` met at a barrier.
void share_words(Threadgroup& group, uint32_t first, uint32_t last, uint32_t flags);

// Whether a thread has heard that an access happened before, in a threadgroup that began at
// `group_start`.
bool has_heard(uint32_t thread, uint64_t group_start, uint64_t access_time, uint32_t access_thread,
               Ordered memory);

}  // namespace metalsim
