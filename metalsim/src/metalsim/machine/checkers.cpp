// The listeners of a checking build: bytes loaded and stored by address space, and accesses outside
// what is bound.
#include "regions.h"

#if defined(METALSIM_CHECK)

#include <stdio.h>

namespace metalsim {
namespace {

void count_bytes(Fiber& fiber, const Access& access, const Region& region) {
  uint64_t* counters = fiber.threadgroup->counters;
  if (access.kind == AccessKind::atomic) {
    ++counters[atomics];
    return;
  }
  const bool store = access.kind == AccessKind::store;
  switch (region.space) {
    case Space::device:
      counters[store ? device_bytes_stored : device_bytes_loaded] += access.bytes;
      break;
    case Space::constant:
      counters[constant_bytes_loaded] += access.bytes;
      break;
    case Space::threadgroup:
      counters[store ? threadgroup_bytes_stored : threadgroup_bytes_loaded] += access.bytes;
      break;
    default:
      break;
  }
}

const char* verb(AccessKind kind) {
  switch (kind) {
    case AccessKind::load:
      return "load";
    case AccessKind::store:
      return "store";
    default:
      return "atomic operation";
  }
}

[[noreturn]] void refuse_unbound(Fiber& fiber, const Access& access, uint32_t buffer) {
  Threadgroup& group = *fiber.threadgroup;
  fail(group, "bounds",
       "%s of %u bytes through buffer(%u), which is not bound, by thread %u of threadgroup (%u, "
       "%u, %u)",
       verb(access.kind), access.bytes, buffer, fiber.thread, group.position[0], group.position[1],
       group.position[2]);
}

[[noreturn]] void refuse_outside(Fiber& fiber, const Access& access) {
  Threadgroup& group = *fiber.threadgroup;
  const Region near = nearest_below(group, access.address);
  const auto offset = static_cast<unsigned long long>(access.address - near.base);
  const auto size = static_cast<unsigned long long>(near.bytes);
  const char* name = near.space == Space::threadgroup ? group.variables[near.index].name : "buffer";
  char place[160];
  if (near.space == Space::unknown)
    snprintf(place, sizeof place, "at %p, below every buffer",
             static_cast<const void*>(access.address));
  else if (near.space == Space::threadgroup)
    snprintf(place, sizeof place, "at byte %llu of threadgroup variable %s, which has %llu", offset,
             name, size);
  else
    snprintf(place, sizeof place, "at byte %llu of buffer(%u), which has %llu", offset, near.index,
             size);
  fail(group, "bounds",
       "%s of %u bytes out of bounds: %s; by thread %u of threadgroup (%u, %u, %u)",
       verb(access.kind), access.bytes, place, fiber.thread, group.position[0], group.position[1],
       group.position[2]);
}

void check_bounds(Fiber& fiber, const Access& access, const Region& region) {
  if (region.space == Space::unknown) refuse_outside(fiber, access);
  // A compiler may load early through a reference, which it trusts to be bound; a pointer it may
  // not.
  const bool reference = fiber.threadgroup->entry->reference_buffers >> region.index & 1;
  if (region.space == Space::unbound && !(reference && access.kind == AccessKind::load))
    refuse_unbound(fiber, access, region.index);
}

constexpr Listener listeners[] = {
    {nullptr, check_bounds, nullptr, nullptr},
    {nullptr, count_bytes, nullptr, nullptr},
};

}  // namespace

void notify_begin(Threadgroup& group) {
  for (const Listener& listener : listeners)
    if (listener.begin != nullptr) listener.begin(group);
}

void notify_access(const Access& access) {
  Fiber* fiber = running_fiber;
  Region region;
  if (fiber == nullptr || !find_region(*fiber->threadgroup, access, region)) return;
  for (const Listener& listener : listeners)
    if (listener.access != nullptr) listener.access(*fiber, access, region);
}

void notify_synchronize(Fiber* fiber, Scope scope, uint32_t flags) {
  for (const Listener& listener : listeners)
    if (listener.synchronize != nullptr) listener.synchronize(*fiber, scope, flags);
}

void notify_end(Threadgroup& group) {
  for (const Listener& listener : listeners)
    if (listener.end != nullptr) listener.end(group);
}

}  // namespace metalsim

#endif
