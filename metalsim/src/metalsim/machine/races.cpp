// Data races: two accesses to the same bytes, one of them a plain write, with nothing between them
// that orders them. A barrier orders the accesses of those who meet there, to the memory that its
// flags name; only fences order threadgroups (fences.h), and shuffles order no memory.
//
// Time is the number of barriers so far. Each granule of memory remembers its last write and up to
// two accesses of each other kind, enough to tell whether any earlier one is unordered with a new
// one. Memory begins with granules of four bytes; an access that cuts one makes all of them
// smaller, so bytes are told apart wherever a kernel does.
#include "fences.h"

#if defined(METALSIM_CHECK)

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

namespace metalsim {
namespace {

// An access in one word: time (28 bits), thread (10), kind (2), code (24). 0: none.
using Record = uint64_t;
constexpr uint32_t time_shift = 36, thread_shift = 26, kind_shift = 24;
constexpr uint64_t latest_time = (1ull << (64 - time_shift)) - 1;

uint64_t time_of(Record record) { return record >> time_shift; }
uint32_t thread_of(Record record) { return record >> thread_shift & 1023; }
uint32_t simdgroup_of(Record record) { return thread_of(record) / simdgroup_width; }
AccessKind kind_of(Record record) { return static_cast<AccessKind>(record >> kind_shift & 3); }

// Two bits: atomic stores conflict with what updates conflict with.
uint64_t kind_bits(AccessKind kind) {
  return static_cast<uint64_t>(kind == AccessKind::atomic_store ? AccessKind::atomic : kind);
}

// Accesses of one kind, which agree with each other.
struct Sharers {
  Record first, second;
};

struct Granule {
  Record write;
  Sharers reads;
};

// What conflicts with a read is not what conflicts with an atomic operation: none stands for the
// other.
struct Atomics {
  Sharers updates, loads;
  const Word* word;
};

struct Shadow {
  const unsigned char* base;
  uint64_t bytes;
  Granule* granules;
  Atomics* atomics;        // of each granule
  unsigned char* touched;  // which chunks of the memory have been accessed
  uint64_t count;          // of granules that there is room for
  uint32_t shift;          // a granule has 1 << shift bytes
  bool has_atomics;
};

constexpr uint32_t chunk_shift = 12;

struct GroupStart {
  uint64_t time;
  uint32_t position[3];
};

struct Races {
  uint64_t time;
  uint64_t group_time[2];  // of the last barrier of all threads, by kind of memory
  uint64_t simdgroup_time[max_threads / simdgroup_width][2];
  uint64_t group_start;
  GroupStart* starts;  // of each threadgroup so far
  uint64_t starts_bytes;
  uint64_t started;
  Shadow arena;
  Shadow* device;
  uint32_t device_count;
};
__thread Races* races;

void* map(uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  return memory == MAP_FAILED ? nullptr : memory;
}

uint64_t chunks_of(const Shadow& shadow) { return (shadow.count >> chunk_shift) + 1; }

// Room for granules of one byte; pages that are not touched cost nothing.
bool open_shadow(Shadow& shadow, const unsigned char* base, uint64_t bytes) {
  shadow = {base, bytes, nullptr, nullptr, nullptr, bytes + 4, 2, false};
  shadow.granules = static_cast<Granule*>(map(shadow.count * sizeof(Granule)));
  shadow.atomics = static_cast<Atomics*>(map(shadow.count * sizeof(Atomics)));
  shadow.touched = static_cast<unsigned char*>(map(chunks_of(shadow)));
  return shadow.granules != nullptr && shadow.atomics != nullptr && shadow.touched != nullptr;
}

void close_shadow(Shadow& shadow) {
  if (shadow.granules != nullptr) munmap(shadow.granules, shadow.count * sizeof(Granule));
  if (shadow.atomics != nullptr) munmap(shadow.atomics, shadow.count * sizeof(Atomics));
  if (shadow.touched != nullptr) munmap(shadow.touched, chunks_of(shadow));
}

// Two entries for each, from the end so that none is overwritten before it is read.
template <class Entry>
void split(Entry* entries, uint64_t begin, uint64_t end) {
  for (uint64_t index = end; index-- > begin;) {
    const Entry entry = entries[index];
    entries[index] = {};
    entries[2 * index] = entries[2 * index + 1] = entry;
  }
}

// Halves the granules.
__attribute__((noinline)) void refine(Shadow& shadow) {
  const uint32_t granules = chunk_shift - shadow.shift;  // of a chunk: 1 << granules
  const uint64_t count = (shadow.bytes >> shadow.shift) + 1;
  for (uint64_t chunk = chunks_of(shadow); chunk-- > 0;) {
    if (shadow.touched[chunk] == 0) continue;
    const uint64_t begin = chunk << granules, past = (chunk + 1) << granules;
    const uint64_t end = past < count ? past : count;
    split(shadow.granules, begin, end);
    if (shadow.has_atomics) split(shadow.atomics, begin, end);
  }
  --shadow.shift;
}

bool is_ordered_by_barriers(Record record, uint32_t thread, Ordered memory) {
  const Races& state = *races;
  const uint64_t time = time_of(record);
  if (time < state.group_start) return record == 0 || memory == threadgroup_memory;
  if (thread_of(record) == thread || time < state.group_time[memory]) return true;
  const uint32_t simdgroup = thread / simdgroup_width;
  return simdgroup_of(record) == simdgroup && time < state.simdgroup_time[simdgroup][memory];
}

// Whether a remembered access happened before whatever the thread does now.
bool is_ordered(Record record, uint32_t thread, Ordered memory) {
  return is_ordered_by_barriers(record, thread, memory) ||
         (are_words_spoken() &&
          has_heard(thread, races->group_start, time_of(record), thread_of(record), memory));
}

Place place_of(const Threadgroup& group, Record record) {
  Place place = {record & ((1u << kind_shift) - 1), kind_of(record), thread_of(record), {}};
  memcpy(place.threadgroup, group.position, sizeof place.threadgroup);
  if (time_of(record) >= races->group_start) return place;
  uint64_t low = 0, high = races->started;
  while (high - low > 1) {
    const uint64_t middle = (low + high) / 2;
    (races->starts[middle].time <= time_of(record) ? low : high) = middle;
  }
  memcpy(place.threadgroup, races->starts[low].position, sizeof place.threadgroup);
  return place;
}

struct Visit {
  Fiber& fiber;
  const Access& access;
  const Region& region;
  Record record;
  Ordered memory;
  bool is_reported = false;

  bool conflicts(Record earlier) { return !is_ordered(earlier, fiber.thread, memory); }

  // One report an access: the granules of a vector tell the same story.
  __attribute__((noinline)) void report_race(Record earlier) {
    if (is_reported) return;
    is_reported = true;
    const Place other = place_of(*fiber.threadgroup, earlier);
    report(fiber, METALSIM_RACES, access, region, &other);
  }

  void write(Granule& granule, Atomics* atomics) {
    check(granule.write);
    check(granule.reads);
    if (atomics != nullptr) {
      check(atomics->updates);
      check(atomics->loads);
      *atomics = {};
    }
    granule = {record, {}};
  }

  void load(Granule& granule, const Atomics* atomics) {
    check(granule.write);
    if (atomics != nullptr) check(atomics->updates);
    remember(granule.reads);
  }

  void atomic(Granule& granule, Atomics& atomics) {
    check(granule.write);
    const bool is_load = access.kind == AccessKind::atomic_load;
    if (!is_load) check(granule.reads);
    remember(is_load ? atomics.loads : atomics.updates);
    if (are_words_spoken())
      atomics.word = pass_word(*fiber.threadgroup, fiber.thread, access.kind, atomics.word);
  }

  void check(Record earlier) {
    if (conflicts(earlier)) [[unlikely]]
      report_race(earlier);
  }

  void check(const Sharers& earlier) {
    if ((earlier.first | earlier.second) == 0) return;
    check(earlier.first);
    check(earlier.second);
  }

  // Keeps two accesses such that any thread is another one than at least one of them, of another
  // simdgroup where there is one. Whatever is unordered with an access that is ordered before this
  // one is unordered with this one too.
  void remember(Sharers& sharers) {
    if (is_ordered(sharers.first, fiber.thread, memory)) {
      sharers.first = record;
      return;
    }
    const bool is_wider = simdgroup_of(sharers.second) == simdgroup_of(sharers.first) &&
                          simdgroup_of(record) != simdgroup_of(sharers.first);
    if (is_wider || is_ordered(sharers.second, fiber.thread, memory)) sharers.second = record;
  }
};

void check_granules(Visit& visit, Shadow& shadow) {
  const uint64_t offset = static_cast<uint64_t>(visit.access.address - shadow.base);
  const uint64_t bytes = visit.access.bytes;
  while (((offset | bytes) & ((1u << shadow.shift) - 1)) != 0) [[unlikely]]
    refine(shadow);
  shadow.touched[offset >> chunk_shift] = 1;
  shadow.touched[(offset + bytes) >> chunk_shift] = 1;
  Granule* granule = shadow.granules + (offset >> shadow.shift);
  Granule* end = granule + (bytes >> shadow.shift);
  const AccessKind kind = visit.access.kind;
  shadow.has_atomics |= kind != AccessKind::load && kind != AccessKind::store;
  Atomics* atomics = shadow.has_atomics ? shadow.atomics + (offset >> shadow.shift) : nullptr;
  for (; granule != end; ++granule) {
    if (kind == AccessKind::store)
      visit.write(*granule, atomics);
    else if (kind == AccessKind::load)
      visit.load(*granule, atomics);
    else
      visit.atomic(*granule, *atomics);
    if (atomics != nullptr) ++atomics;
  }
}

void pass_time(Threadgroup& group) {
  if (++races->time > latest_time)
    fail(group, "launch", "too many barriers for the race checker: run a smaller grid");
}

}  // namespace

bool open_races(Threadgroup& group) {
  races = static_cast<Races*>(calloc(1, sizeof(Races)));
  if (races == nullptr || !open_fences()) return false;
  const Memories memories = device_memories();
  uint64_t total = 1;
  for (const uint32_t groups : group.groups) total *= groups;
  races->starts_bytes = total * sizeof(GroupStart);
  races->starts = static_cast<GroupStart*>(map(races->starts_bytes));
  races->device = static_cast<Shadow*>(calloc(memories.count + 1, sizeof(Shadow)));
  races->device_count = memories.count;
  bool ready = races->starts != nullptr && races->device != nullptr &&
               open_shadow(races->arena, group.arena, arena_bytes);
  for (uint32_t index = 0; ready && index < memories.count; ++index)
    ready = open_shadow(races->device[index], memories.pieces[index].base,
                        memories.pieces[index].bytes);
  return ready;
}

void begin_races(Threadgroup& group) {
  GroupStart& start = races->starts[races->started++];
  start.time = races->group_start = ++races->time;
  memcpy(start.position, group.position, sizeof start.position);
  forget_words();
}

bool check_races(Fiber& fiber, const Access& access, const Region& region) {
  const bool is_shared = region.space == Space::threadgroup;
  if (!is_shared && region.space != Space::device && region.space != Space::constant) return true;
  const uint64_t code = code_offset(access.code);
  const Record record = races->time << time_shift |
                        static_cast<uint64_t>(fiber.thread) << thread_shift |
                        kind_bits(access.kind) << kind_shift | (code >> kind_shift == 0 ? code : 0);
  Visit visit = {fiber, access, region, record, is_shared ? threadgroup_memory : device_memory};
  check_granules(visit, is_shared ? races->arena : races->device[region.memory]);
  return true;
}

void order_accesses(Fiber& fiber, Scope scope, uint32_t flags) {
  pass_time(*fiber.threadgroup);
  const bool is_group = scope == Scope::threadgroup || fiber.threadgroup->simdgroup_count == 1;
  const uint32_t simdgroup = fiber.thread / simdgroup_width;
  uint64_t* times = is_group ? races->group_time : races->simdgroup_time[simdgroup];
  if (flags & 1) times[device_memory] = races->time;
  if (flags & 2) times[threadgroup_memory] = races->time;
  if (!are_words_spoken()) return;
  const uint32_t first = is_group ? 0 : simdgroup * simdgroup_width;
  const uint32_t last = is_group ? fiber.threadgroup->thread_count : first + simdgroup_width;
  share_words(*fiber.threadgroup, first, last, flags & 3);
}

void close_races() {
  close_fences();
  if (races == nullptr) return;
  close_shadow(races->arena);
  for (uint32_t index = 0; races->device != nullptr && index < races->device_count; ++index)
    close_shadow(races->device[index]);
  free(races->device);
  if (races->starts != nullptr) munmap(races->starts, races->starts_bytes);
  free(races);
  races = nullptr;
}

}  // namespace metalsim

using namespace metalsim;

void metalsim_fence(Fiber* fiber, uint32_t flags, uint32_t order, uint32_t scope) {
  Threadgroup& group = *fiber->threadgroup;
  if (!(group.launch->checks & METALSIM_RACES)) return;
  pass_time(group);
  const uint64_t* group_time = races->group_time;
  const uint64_t* simdgroup_time = races->simdgroup_time[fiber->thread / simdgroup_width];
  pass_fence(group,
             {races->group_start,
              races->time,
              {group_time[0], group_time[1]},
              {simdgroup_time[0], simdgroup_time[1]},
              fiber->thread},
             flags, order, scope);
}

#endif
