// Bytes by address space, and in a launch that profiles: which accesses of the lanes are one access
// of the simdgroup, the 128-byte lines and banks that it touches, and all counters by instruction.
//
// Lanes run one after another here, so their accesses are put together by a rule: between two
// collectives, the nth execution of an instruction by one lane belongs with the nth execution by
// every other. What a lane executes between collectives does not depend on the others (unless they
// race), so the counts are the same in every schedule.
//
// Compilers split vectors: accesses of one lane that come soon after one another, by different
// instructions, and make up an aligned piece of at most 16 bytes are one access.
#include "profile.h"

#if defined(METALSIM_CHECK)

#include <stdlib.h>
#include <string.h>

#include "checkers.h"

namespace metalsim {
namespace {

constexpr uint32_t line_bytes = 128;
constexpr uint32_t bank_count = 32;
constexpr uint32_t word_bytes = 4;     // a bank is this wide
constexpr uint32_t vector_bytes = 16;  // the most that a lane loads or stores at once

// One access of a simdgroup, as far as its lanes have come.
struct Group {
  uint32_t site;
  uint32_t occurrence;
  uint32_t lanes;
  Space space;
  bool store;
  uint32_t bytes[simdgroup_width];
  uint64_t first[simdgroup_width];  // bytes from where the buffer or variable begins
};

// A late access of a lane, which may be a part of a vector that the next ones complete.
struct Part {
  uint64_t epoch;
  const unsigned char* begin;
  uint32_t group;
  uint32_t site;
};
constexpr uint32_t remembered_parts = 8;

struct Latest {
  Part parts[remembered_parts];
  uint32_t next;
};

// The accesses of a simdgroup since its last collective: `slots` finds them by instruction and
// occurrence.
struct Pending {
  Group* groups;
  uint32_t* slots;  // index + 1, 0: free
  uint32_t count;
  uint32_t capacity;  // of groups; slots have twice as many
  uint64_t epoch;
  Latest latest[simdgroup_width][2];  // load, store
};

// How often each lane executed an instruction since the simdgroup's last collective.
struct Progress {
  uint64_t epoch;
  uint32_t executed[simdgroup_width];
};

struct Site {
  const void* code;
  metalsim_line_counters* counters;
  Progress* progress;  // of each simdgroup
};

struct Profile {
  Site* sites;  // by hash of the code; one more takes what finds no room
  uint32_t capacity;
  uint32_t count;
  Pending pending[max_threads / simdgroup_width];
};

__thread Profile* profile;

uint64_t hashed(uint64_t value) { return value * 0x9E3779B97F4A7C15u >> 20; }

[[noreturn]] void refuse_memory(Threadgroup& group) {
  fail(group, "launch", "no memory to profile this launch: make it smaller");
}

Site& site_of(Threadgroup& group, const void* code) {
  const uint32_t mask = profile->capacity - 1;
  uint64_t at = hashed(reinterpret_cast<uint64_t>(code)) & mask;
  while (profile->sites[at].code != nullptr && profile->sites[at].code != code)
    at = (at + 1) & mask;
  Site& site = profile->sites[at];
  if (site.code != nullptr) return site;
  metalsim_launch& launch = *group.launch;
  if (launch.line_count == launch.line_capacity)
    fail(group, "launch", "the kernel has too many instructions to profile");
  site.code = code;
  site.counters = &launch.lines[launch.line_count++];
  site.counters->code = code_offset(code);
  site.progress = static_cast<Progress*>(calloc(max_threads / simdgroup_width, sizeof(Progress)));
  if (site.progress == nullptr) refuse_memory(group);
  return site;
}

void insert(Pending& pending, uint32_t index) {
  const Group& group = pending.groups[index];
  const uint32_t mask = 2 * pending.capacity - 1;
  uint64_t at = hashed(static_cast<uint64_t>(group.site) << 32 | group.occurrence) & mask;
  while (pending.slots[at] != 0) at = (at + 1) & mask;
  pending.slots[at] = index + 1;
}

void grow(Threadgroup& group, Pending& pending) {
  const uint32_t capacity = pending.capacity == 0 ? 256 : 2 * pending.capacity;
  auto* groups = static_cast<Group*>(realloc(pending.groups, capacity * sizeof(Group)));
  if (groups == nullptr) refuse_memory(group);
  pending.groups = groups;
  free(pending.slots);
  pending.slots = static_cast<uint32_t*>(calloc(2ull * capacity, sizeof(uint32_t)));
  if (pending.slots == nullptr) refuse_memory(group);
  pending.capacity = capacity;
  for (uint32_t index = 0; index < pending.count; ++index) insert(pending, index);
}

Group& group_of(Threadgroup& threadgroup, Pending& pending, uint32_t site, uint32_t occurrence) {
  if (pending.count == pending.capacity) grow(threadgroup, pending);
  const uint32_t mask = 2 * pending.capacity - 1;
  uint64_t at = hashed(static_cast<uint64_t>(site) << 32 | occurrence) & mask;
  for (; pending.slots[at] != 0; at = (at + 1) & mask) {
    Group& group = pending.groups[pending.slots[at] - 1];
    if (group.site == site && group.occurrence == occurrence) return group;
  }
  Group& group = pending.groups[pending.count++];
  pending.slots[at] = pending.count;
  group.site = site;
  group.occurrence = occurrence;
  group.lanes = 0;
  return group;
}

void add(Threadgroup& group, const Site& site, Counter counter, uint64_t amount) {
  group.counters[counter] += amount;
  site.counters->counters[counter] += amount;
}

int ascending(const void* a, const void* b) {
  const uint64_t left = *static_cast<const uint64_t*>(a);
  const uint64_t right = *static_cast<const uint64_t*>(b);
  return left < right ? -1 : left > right;
}

// The distinct pieces of memory, each `size` bytes, that the lanes touch: sorted into `pieces`.
// Lanes that load more than 8 pieces (copies of whole structures) count with their first 8.
constexpr uint32_t most_pieces = 8 * simdgroup_width;

uint32_t distinct_pieces(const Group& group, uint32_t size, uint64_t* pieces) {
  uint32_t count = 0;
  for (uint32_t lanes = group.lanes; lanes != 0; lanes &= lanes - 1) {
    const int lane = __builtin_ctz(lanes);
    const uint64_t first = group.first[lane];
    const uint64_t last = (first + group.bytes[lane] - 1) / size;
    for (uint64_t piece = first / size; piece <= last && piece < first / size + 8; ++piece)
      pieces[count++] = piece;
  }
  qsort(pieces, count, sizeof *pieces, ascending);
  uint32_t kept = 0;
  for (uint32_t index = 0; index < count; ++index)
    if (index == 0 || pieces[index] != pieces[index - 1]) pieces[kept++] = pieces[index];
  return kept;
}

// A pass serves one word of each bank, to any number of lanes.
void count_passes(Threadgroup& threadgroup, const Group& group, const Site& site) {
  uint64_t words[most_pieces];
  const uint32_t count = distinct_pieces(group, word_bytes, words);
  uint32_t in_bank[bank_count] = {}, passes = 0;
  for (uint32_t index = 0; index < count; ++index) {
    const uint32_t in_this = ++in_bank[words[index] % bank_count];
    if (in_this > passes) passes = in_this;
  }
  add(threadgroup, site, group.store ? threadgroup_stores : threadgroup_loads, 1);
  add(threadgroup, site, bank_conflicts, passes - (count + bank_count - 1) / bank_count);
}

void count_lines(Threadgroup& threadgroup, const Group& group, const Site& site) {
  uint64_t lines[most_pieces];
  const uint32_t count = distinct_pieces(group, line_bytes, lines);
  add(threadgroup, site, group.store ? device_stores : device_loads, 1);
  add(threadgroup, site, group.store ? device_lines_stored : device_lines_loaded, count);
}

Counter bytes_counter(Space space, bool store) {
  if (space == Space::threadgroup)
    return store ? threadgroup_bytes_stored : threadgroup_bytes_loaded;
  if (space == Space::constant) return constant_bytes_loaded;
  return store ? device_bytes_stored : device_bytes_loaded;
}

// Whether a part and the access make up an aligned vector; the access is then counted with the
// part.
bool completes(const Access& access, Group& group, Part& part, uint32_t lane) {
  uint32_t& bytes = group.bytes[lane];
  const uint32_t whole = bytes + access.bytes;
  if (whole > vector_bytes) return false;
  const bool follows = access.address == part.begin + bytes;
  if (!follows && access.address + access.bytes != part.begin) return false;
  const unsigned char* begin = follows ? part.begin : access.address;
  const uint64_t alignment = whole <= 2 ? 2 : whole <= 4 ? 4 : whole <= 8 ? 8 : vector_bytes;
  if (reinterpret_cast<uint64_t>(begin) % alignment != 0) return false;
  group.first[lane] -= static_cast<uint64_t>(part.begin - begin);
  part.begin = begin;
  bytes = whole;
  return true;
}

bool joins(const Fiber& fiber, const Access& access, Pending& pending, uint32_t number) {
  Latest& latest = pending.latest[fiber.lane][number & 1];
  for (Part& part : latest.parts) {
    if (part.epoch != pending.epoch || part.site == number) continue;
    if (!completes(access, pending.groups[part.group], part, fiber.lane)) continue;
    part.site = number;
    return true;
  }
  return false;
}

void remember(Fiber& fiber, const Access& access, const Region& region, Site& site) {
  const uint32_t simd = fiber.simdgroup->index;
  Pending& pending = profile->pending[simd];
  Progress& progress = site.progress[simd];
  if (progress.epoch != pending.epoch) {
    memset(progress.executed, 0, sizeof progress.executed);
    progress.epoch = pending.epoch;
  }
  const bool store = access.kind == AccessKind::store;
  // What loads and stores at once has two accesses by one instruction.
  const auto number = static_cast<uint32_t>(&site - profile->sites) * 2 + store;
  if (joins(fiber, access, pending, number)) return;
  const uint32_t occurrence = progress.executed[fiber.lane]++;
  Group& group = group_of(*fiber.threadgroup, pending, number, occurrence);
  if (group.lanes == 0) {
    group.space = region.space;
    group.store = store;
  }
  group.lanes |= 1u << fiber.lane;
  group.bytes[fiber.lane] = access.bytes;
  Latest& latest = pending.latest[fiber.lane][store];
  latest.parts[latest.next++ % remembered_parts] = {
      pending.epoch, access.address, static_cast<uint32_t>(&group - pending.groups), number};
  group.first[fiber.lane] = static_cast<uint64_t>(access.address - region.base);
}

bool is_profiled(const Threadgroup& group) { return group.launch->checks & METALSIM_PROFILE; }

}  // namespace

void count(Threadgroup& group, Counter counter, uint64_t amount, const void* code) {
  group.counters[counter] += amount;
  if (is_profiled(group)) site_of(group, code).counters->counters[counter] += amount;
}

void close_accesses(Threadgroup& group, Simdgroup& simd) {
  if (!is_profiled(group)) return;
  Pending& pending = profile->pending[simd.index];
  ++pending.epoch;
  if (pending.count == 0) return;
  for (uint32_t index = 0; index < pending.count; ++index) {
    const Group& access = pending.groups[index];
    const Site& site = profile->sites[access.site / 2];
    if (access.space == Space::threadgroup)
      count_passes(group, access, site);
    else if (access.space == Space::device)
      count_lines(group, access, site);
  }
  pending.count = 0;
  memset(pending.slots, 0, 2ull * pending.capacity * sizeof(uint32_t));
}

bool open_profile(Threadgroup&) {
  profile = static_cast<Profile*>(calloc(1, sizeof(Profile)));
  if (profile == nullptr) return false;
  profile->capacity = 2 * METALSIM_LINES;
  profile->sites = static_cast<Site*>(calloc(profile->capacity, sizeof(Site)));
  for (Pending& pending : profile->pending) pending.epoch = 1;
  return profile->sites != nullptr;
}

void end_profile(Threadgroup& group) {
  for (uint32_t index = 0; index < group.simdgroup_count; ++index)
    close_accesses(group, group.simdgroups[index]);
}

void close_profile() {
  if (profile == nullptr) return;
  for (Pending& pending : profile->pending) {
    free(pending.groups);
    free(pending.slots);
  }
  for (uint32_t index = 0; profile->sites != nullptr && index < profile->capacity; ++index)
    free(profile->sites[index].progress);
  free(profile->sites);
  free(profile);
  profile = nullptr;
}

bool count_access(Fiber& fiber, const Access& access, const Region& region) {
  Threadgroup& group = *fiber.threadgroup;
  if (access.kind == AccessKind::atomic_load) return true;
  if (access.kind == AccessKind::atomic || access.kind == AccessKind::atomic_store) {
    count(group, atomics, 1, access.code);
    return true;
  }
  if (region.space == Space::device || region.space == Space::constant ||
      region.space == Space::threadgroup) {
    const bool store = access.kind == AccessKind::store;
    count(group, bytes_counter(region.space, store), access.bytes, access.code);
    if (is_profiled(group)) remember(fiber, access, region, site_of(group, access.code));
  }
  return true;
}

}  // namespace metalsim

#endif
