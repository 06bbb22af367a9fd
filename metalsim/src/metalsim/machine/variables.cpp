// Threadgroup memory: one arena a threadgroup, each variable placed when its first thread reaches
// it.
#include <stdio.h>
#include <string.h>

#include "threadgroup.h"

namespace metalsim {
namespace {

[[noreturn]] void refuse_variable(Threadgroup& group, uint32_t bytes, const char* name) {
  char list[2048] = "";
  size_t used = 0;
  for (uint32_t index = 0; index < group.declared_count && used < sizeof list; ++index) {
    const ThreadgroupVariable& variable = group.variables[group.declared[index]];
    const int written = snprintf(list + used, sizeof list - used, "%s %u + ", variable.name,
                                 static_cast<unsigned>(variable.bytes));
    if (written > 0) used += static_cast<size_t>(written);
  }
  fail(group, "threadgroup_memory",
       "threadgroup memory of %u bytes is over the limit of %u: %s%s %u; make the arrays smaller",
       static_cast<unsigned>(group.declared_bytes + bytes),
       static_cast<unsigned>(max_threadgroup_bytes), list, name, static_cast<unsigned>(bytes));
}

uint32_t round_up(uint32_t value, uint32_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

void forget_variables(Threadgroup& group) {
  for (uint32_t index = 0; index < group.declared_count; ++index)
    group.variables[group.declared[index]] = {};
  group.declared_count = group.declared_bytes = group.arena_used = 0;
}

}  // namespace metalsim

using namespace metalsim;

void* metalsim_threadgroup_variable(Fiber* fiber, uint32_t id, uint32_t bytes, uint32_t alignment,
                                    const char* name) {
  Threadgroup& group = *fiber->threadgroup;
  ThreadgroupVariable& variable = group.variables[id % max_variables];
  if (variable.base != nullptr) return variable.base;
  const uint32_t aligned = round_up(group.declared_bytes, alignment);
  if (id >= max_variables || aligned + bytes > max_threadgroup_bytes)
    refuse_variable(group, bytes, name);
  group.declared_bytes = aligned + bytes;
  group.declared[group.declared_count++] = static_cast<uint16_t>(id);
  const uint32_t offset = round_up(group.arena_used + arena_gap, alignment < 16 ? 16 : alignment);
  group.arena_used = offset + bytes;
  variable = {group.arena + offset, name, bytes};
  memset(variable.base, 0xFF, bytes);
  return variable.base;
}
