// Error messages: the first one of a threadgroup is kept, with counts of threads and lines of the
// source.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "context.h"
#include "threadgroup.h"

namespace metalsim {
namespace {

void keep_error(Threadgroup& group, const char* kind, const char* format, va_list arguments) {
  if (group.error[0] != 0) return;
  snprintf(group.error_kind, sizeof group.error_kind, "%s", kind);
  vsnprintf(group.error, sizeof group.error, format, arguments);
}

// Text that stops growing at the end of its storage.
struct Text {
  char characters[4096] = "";
  size_t used = 0;

  __attribute__((format(printf, 2, 3))) void append(const char* format, ...) {
    if (used >= sizeof characters) return;
    va_list arguments;
    va_start(arguments, format);
    const int written = vsnprintf(characters + used, sizeof characters - used, format, arguments);
    va_end(arguments);
    if (written > 0) used += static_cast<size_t>(written);
  }
};

// Threads that stand at the same place: a barrier, a collective, or the kernel's end (name is
// null).
struct Standing {
  const char* name;
  uint32_t line;
  uint32_t count;
  uint32_t first;
};

struct Standings {
  Standing places[64];
  uint32_t count = 0;

  void add(const char* name, uint32_t line, uint32_t thread) {
    for (uint32_t index = 0; index < count; ++index) {
      Standing& place = places[index];
      const bool same_name = place.name == name || (place.name != nullptr && name != nullptr &&
                                                    strcmp(place.name, name) == 0);
      if (same_name && place.line == line) {
        ++place.count;
        return;
      }
    }
    if (count < 64) places[count++] = {name, line, 1, thread};
  }
};

}  // namespace

void set_error(Threadgroup& group, const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  keep_error(group, kind, format, arguments);
  va_end(arguments);
}

void fail(Threadgroup& group, const char* kind, const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  keep_error(group, kind, format, arguments);
  va_end(arguments);
  void* abandoned = nullptr;
  switch_context(&abandoned, group.main_context);
  __builtin_unreachable();
}

void report_divergence(Threadgroup& group) {
  Standings standings;
  for (uint32_t thread = 0; thread < group.thread_count; ++thread) {
    const Fiber& fiber = group.fibers[thread];
    const bool present = fiber.simdgroup->present >> fiber.lane & 1;
    standings.add(present ? fiber.name : nullptr, present ? fiber.line : 0, thread);
  }
  Text text;
  for (uint32_t index = 0; index < standings.count; ++index) {
    const Standing& place = standings.places[index];
    text.append("%s%u thread%s (first: %u) ", index == 0 ? "" : "; ", place.count,
                place.count == 1 ? "" : "s", place.first);
    if (place.name == nullptr)
      text.append("returned from the kernel");
    else
      text.append("in %s at line %u", place.name, place.line);
  }
  set_error(
      group, "divergence",
      "threads of threadgroup (%u, %u, %u) wait for one another: %s. All threads of a threadgroup "
      "must reach the same threadgroup_barrier, all lanes of a simdgroup the same collective",
      group.position[0], group.position[1], group.position[2], text.characters);
}

}  // namespace metalsim
