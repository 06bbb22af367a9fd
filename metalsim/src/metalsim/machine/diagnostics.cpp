// Error messages: the first one of a threadgroup is kept, with counts of threads and lines of the
// source.
#include <stdarg.h>
#include <stdio.h>

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

// Threads that stand at the same place: a barrier, a collective, or the kernel's end (where is
// null).
struct Standing {
  const Fiber* where;
  uint32_t count;
  uint32_t first;
};

bool is_one_place(const Fiber* a, const Fiber* b) {
  if (a == nullptr || b == nullptr) return a == b;
  return a->site == b->site && same_name(a->name, b->name) && is_same_way(*a, *b);
}

struct Standings {
  Standing places[64];
  uint32_t count = 0;

  void add(const Fiber* where, uint32_t thread) {
    for (uint32_t index = 0; index < count; ++index) {
      if (is_one_place(places[index].where, where)) {
        ++places[index].count;
        return;
      }
    }
    if (count < 64) places[count++] = {where, 1, thread};
  }

  // Whether the line of place `index` does not tell it from an earlier one.
  bool is_hidden(uint32_t index) const {
    const Fiber& own = *places[index].where;
    for (uint32_t other = 0; other < index; ++other) {
      const Fiber* at = places[other].where;
      if (at != nullptr && line_of(at->site) == line_of(own.site) && same_name(at->name, own.name))
        return true;
    }
    return false;
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
    standings.add(present ? &fiber : nullptr, thread);
  }
  Text text;
  for (uint32_t index = 0; index < standings.count; ++index) {
    const Standing& place = standings.places[index];
    text.append("%s%u thread%s (first: %u) ", index == 0 ? "" : "; ", place.count,
                place.count == 1 ? "" : "s", place.first);
    if (place.where == nullptr)
      text.append("returned from the kernel");
    else
      text.append("in %s at line %u%s", place.where->name, line_of(place.where->site),
                  standings.is_hidden(index) ? " by another call" : "");
  }
  set_error(
      group, "divergence",
      "threads of threadgroup (%u, %u, %u) wait for one another: %s. All threads of a threadgroup "
      "must reach the same threadgroup_barrier, all lanes of a simdgroup the same collective",
      group.position[0], group.position[1], group.position[2], text.characters);
}

}  // namespace metalsim
