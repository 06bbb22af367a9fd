// What checkers found, as the launch hands it to its caller.
#include "checkers.h"

#if defined(METALSIM_CHECK)

namespace metalsim {
namespace {

uint32_t action_of(AccessKind kind) {
  switch (kind) {
    case AccessKind::load:
      return 0;
    case AccessKind::store:
      return 1;
    case AccessKind::use:
      return 3;
    default:
      return 2;
  }
}

// An index in a threadgroup as a position; threadgroups at the grid's edge are smaller.
void set_position(const metalsim_launch& launch, const Place& place, metalsim_access& access) {
  uint32_t size[3];
  for (int axis = 0; axis < 3; ++axis) {
    const uint32_t left = launch.threads[axis] - place.threadgroup[axis] * launch.group[axis];
    size[axis] = left < launch.group[axis] ? left : launch.group[axis];
    access.threadgroup[axis] = place.threadgroup[axis];
  }
  access.thread[0] = place.thread % size[0];
  access.thread[1] = place.thread / size[0] % size[1];
  access.thread[2] = place.thread / size[0] / size[1];
}

metalsim_access describe(const metalsim_launch& launch, const Place& place) {
  metalsim_access access = {};
  access.code = place.code;
  access.action = action_of(place.kind);
  set_position(launch, place, access);
  return access;
}

bool equal(const metalsim_finding& a, const metalsim_finding& b) {
  return a.kind == b.kind && a.space == b.space && a.buffer == b.buffer && a.item == b.item &&
         a.name == b.name && a.size == b.size && a.access.code == b.access.code &&
         a.access.action == b.access.action && a.has_other == b.has_other &&
         a.other.code == b.other.code && a.other.action == b.other.action;
}

void place_in_memory(const Fiber& fiber, const Access& access, const Region& region,
                     metalsim_finding& finding) {
  const Threadgroup& group = *fiber.threadgroup;
  const bool is_outside = region.space == Space::unknown;
  const Region& place = is_outside ? nearest(fiber, access.address) : region;
  const bool is_unbound = region.space == Space::unbound;
  finding.space = static_cast<uint32_t>(is_unbound ? Space::device : place.space);
  finding.buffer = place.index;
  finding.item = place.item;
  if (place.space == Space::threadgroup) finding.name = group.variables[place.index].name;
  if (place.space == Space::thread) finding.name = place.array->name;
  finding.offset = access.address - place.base;
  finding.extent = is_unbound ? 0 : place.bytes;
}

void add(const Fiber& fiber, const void* code, AccessKind kind, metalsim_finding& finding) {
  const Threadgroup& group = *fiber.threadgroup;
  metalsim_launch& launch = *group.launch;
  const Place place = {code_offset(code),
                       kind,
                       fiber.thread,
                       {group.position[0], group.position[1], group.position[2]}};
  finding.count = 1;
  finding.access = describe(launch, place);
  for (uint32_t index = 0; index < launch.finding_count; ++index) {
    if (!equal(launch.findings[index], finding)) continue;
    ++launch.findings[index].count;
    return;
  }
  if (launch.finding_count < launch.finding_capacity)
    launch.findings[launch.finding_count++] = finding;
}

}  // namespace

void report(Fiber& fiber, uint32_t kind, const Access& access, const Region& region,
            const Place* other, uint32_t alignment) {
  metalsim_finding finding = {};
  finding.kind = kind;
  finding.size = access.bytes;
  finding.alignment = alignment;
  place_in_memory(fiber, access, region, finding);
  if (other != nullptr) {
    finding.has_other = 1;
    finding.other = describe(*fiber.threadgroup->launch, *other);
  }
  add(fiber, access.code, access.kind, finding);
}

void report_index(Fiber& fiber, const void* code, const char* type, int64_t index) {
  metalsim_finding finding = {};
  finding.kind = METALSIM_BOUNDS;
  finding.space = static_cast<uint32_t>(Space::unknown);
  finding.name = type;
  finding.offset = index;
  add(fiber, code, AccessKind::use, finding);
}

}  // namespace metalsim

#endif
