// Runs the threads of a threadgroup as fibers of one OS thread. A fiber gives way only at a barrier
// or a collective; sets of lanes are bit masks, so that arriving, releasing and choosing are a few
// instructions.
#include "context.h"
#include "profile.h"
#include "threadgroup.h"

namespace metalsim {

__thread Fiber* running_fiber = nullptr;

namespace {

uint32_t lowest(uint32_t mask) { return static_cast<uint32_t>(__builtin_ctz(mask)); }

uint32_t nth_bit(uint32_t mask, uint32_t n) {
  for (; n != 0; --n) mask &= mask - 1;
  return lowest(mask);
}

uint32_t random_bit(Random& random, uint32_t mask) {
  return nth_bit(mask, random.below(static_cast<uint32_t>(__builtin_popcount(mask))));
}

Fiber* take_lane(Threadgroup& group, Simdgroup& simd, uint32_t lane) {
  simd.runnable &= ~(1u << lane);
  return &group.fibers[simd.index * simdgroup_width + lane];
}

// The choice that is not the usual one: a random one, or the first of another simdgroup; null when
// nothing can run.
__attribute__((noinline)) Fiber* choose(Threadgroup& group, Simdgroup& last) {
  if (last.runnable == 0 && last.undecided != 0) decide(group, last);
  if (last.runnable == 0) group.runnable_simdgroups &= ~(1u << last.index);
  if (group.runnable_simdgroups == 0) return nullptr;
  if (!group.randomize) {
    Simdgroup& simd = group.simdgroups[lowest(group.runnable_simdgroups)];
    return take_lane(group, simd, lowest(simd.runnable));
  }
  const bool stay = last.runnable != 0 && group.random.below(8) < group.stickiness;
  const uint32_t index = stay ? last.index : random_bit(group.random, group.runnable_simdgroups);
  Simdgroup& simd = group.simdgroups[index];
  return take_lane(group, simd, random_bit(group.random, simd.runnable));
}

// Takes the next fiber out of the runnable ones. A fixed order stays in the simdgroup that ran last
// while it can (its operands are in the nearest cache), lowest lane first.
inline Fiber* take_next(Threadgroup& group, Fiber* fiber) {
  Simdgroup& simd = *fiber->simdgroup;
  const uint32_t runnable = simd.runnable;
  if (runnable == 0 || group.randomize) [[unlikely]]
    return choose(group, simd);
  simd.runnable = runnable & (runnable - 1);
  return fiber - fiber->lane + lowest(runnable);
}

// Continues another fiber, or leaves the threadgroup when none can run. Returns when `fiber` is
// continued.
inline void give_way(Threadgroup& group, Fiber* fiber) {
  settle_access();
  Fiber* next = take_next(group, fiber);
  if (next == fiber) return;
  if (next == nullptr) [[unlikely]] {
    if (group.returned != group.thread_count) report_divergence(group);
    switch_context(&fiber->stack_pointer, group.main_context);
    __builtin_unreachable();
  }
  running_fiber = next;
  switch_context(&fiber->stack_pointer, next->stack_pointer);
}

bool is_complete(const Simdgroup& simd) {
  return (simd.waiting | simd.aside) == simd.present && !simd.mismatch &&
         ((simd.present | simd.retired) == simd.existing || !needs_every_lane(simd.code));
}

Counter counter_of(Collective collective) {
  switch (collective) {
    case Collective::barrier:
      return simdgroup_barriers;
    case Collective::shuffle:
      return shuffles;
    case Collective::ballot:
      return votes;
    case Collective::matrix_multiply:
      return matrix_multiplies;
    default:
      return reductions;
  }
}

void complete(Threadgroup& group, Simdgroup& simd) {
  const Collective collective = collective_of(simd.code);
  if (needs_full_simdgroup(collective) && simd.existing != ~0u) [[unlikely]] {
    fail(group, "simdgroup",
         "%s at line %u needs a full simdgroup of 32 threads, but simdgroup %u of threadgroup (%u, "
         "%u, %u) has %d",
         simd.name, line_of(simd.site), simd.index, group.position[0], group.position[1],
         group.position[2], __builtin_popcount(simd.existing));
  }
  if (collective != Collective::tensor_multiply)
    count(group, counter_of(collective), 1, simd.caller);
  close_accesses(group, simd);
  if (collective == Collective::barrier)
    notify_synchronize(&group.fibers[simd.index * simdgroup_width], Scope::simdgroup,
                       simd.code >> 8 & 15);
  simd.active = simd.waiting;
  if (collective != Collective::barrier && collective != Collective::shuffle)
    carry_out(simd, simd.exchange[simd.parity]);
  simd.parity ^= 1;
  simd.runnable = simd.waiting;
  simd.waiting = simd.aside = 0;
  group.runnable_simdgroups |= 1u << simd.index;
}

// After a release: the fiber that brought it about goes on, unless the order is random.
inline void go_on(Threadgroup& group, Fiber* fiber) {
  if (group.randomize) [[unlikely]] {
    give_way(group, fiber);
  } else {
    fiber->simdgroup->runnable &= ~(1u << fiber->lane);
  }
}

// Lets all threads at the barrier go on.
void release(Threadgroup& group, Fiber* fiber) {
  group.arrived = 0;
  count(group, threadgroup_barriers, 1, group.barrier_caller);
  notify_synchronize(fiber, Scope::threadgroup, group.barrier_flags);
  for (uint32_t index = 0; index < group.simdgroup_count; ++index) {
    Simdgroup& simd = group.simdgroups[index];
    close_accesses(group, simd);
    simd.runnable = simd.at_barrier;
    simd.at_barrier = 0;
    if (simd.runnable != 0) group.runnable_simdgroups |= 1u << index;
  }
}

bool all_arrived(const Threadgroup& group) {
  return group.arrived + group.retired == group.thread_count && !group.barrier_mismatch;
}

void leave_kernel(Threadgroup& group, Fiber* fiber) {
  Simdgroup& simd = *fiber->simdgroup;
  simd.present &= ~(1u << fiber->lane);
  ++group.returned;
  if (simd.waiting != 0 && is_complete(simd)) complete(group, simd);
  give_way(group, fiber);
  __builtin_unreachable();
}

void fiber_main() {
  Fiber* fiber = running_fiber;
  Threadgroup& group = *fiber->threadgroup;
  group.entry->body();
  leave_kernel(group, fiber);
}

void prepare_simdgroups(Threadgroup& group) {
  for (uint32_t index = 0; index < group.simdgroup_count; ++index) {
    Simdgroup& simd = group.simdgroups[index];
    const uint32_t lanes = group.thread_count - index * simdgroup_width;
    simd.existing = lanes >= simdgroup_width ? ~0u : (1u << lanes) - 1;
    simd.present = simd.runnable = simd.existing;
    simd.waiting = simd.at_barrier = simd.active = simd.parity = simd.retired = 0;
    simd.undecided = simd.aside = 0;
    simd.index = index;
    simd.turn = simd.scope_entries = 0;
    simd.mismatch = false;
  }
  group.runnable_simdgroups = group.simdgroup_count == 32 ? ~0u : (1u << group.simdgroup_count) - 1;
}

void prepare_fibers(Threadgroup& group) {
  uint32_t thread = 0;
  for (uint32_t z = 0; z < group.size[2]; ++z) {
    for (uint32_t y = 0; y < group.size[1]; ++y) {
      for (uint32_t x = 0; x < group.size[0]; ++x, ++thread) {
        Fiber& fiber = group.fibers[thread];
        fiber.simdgroup = &group.simdgroups[thread / simdgroup_width];
        fiber.threadgroup = &group;
        fiber.lane = static_cast<uint16_t>(thread % simdgroup_width);
        fiber.thread = static_cast<uint16_t>(thread);
        fiber.position[0] = x;
        fiber.position[1] = y;
        fiber.position[2] = z;
        fiber.frame = nullptr;
#if defined(METALSIM_CHECK)
        fiber.arrays = nullptr;
#endif
        fiber.stack_pointer =
            make_context(group.stacks + group.stack_stride * (thread + 1), fiber_main);
      }
    }
  }
}

}  // namespace

void retire(Fiber* fiber) {
  Threadgroup& group = *fiber->threadgroup;
  fiber->simdgroup->retired |= 1u << fiber->lane;
  ++group.retired;
  if (group.arrived != 0 && all_arrived(group)) release(group, fiber);
  leave_kernel(group, fiber);
  __builtin_unreachable();
}

void run_threadgroup(Threadgroup& group) {
  prepare_simdgroups(group);
  prepare_fibers(group);
  group.returned = group.arrived = group.retired = 0;
  group.barrier_mismatch = false;
  notify_begin(group);
  running_fiber = choose(group, group.simdgroups[0]);
  switch_context(&group.main_context, running_fiber->stack_pointer);
  settle_access();
  running_fiber = nullptr;
  check_scopes(group);
  notify_end(group);
}

}  // namespace metalsim

using namespace metalsim;

Fiber* metalsim_current_fiber() { return running_fiber; }

uint32_t metalsim_current_lane() { return running_fiber->lane; }

namespace {

inline __attribute__((always_inline)) void meet(Fiber* fiber, uint32_t code, const char* name,
                                                uint32_t site, const void* caller) {
  Simdgroup& simd = *fiber->simdgroup;
  fiber->name = name;
  fiber->site = site;
  note_frame(fiber, __builtin_frame_address(0));
  if (simd.waiting == 0) {
    simd.code = code;
    simd.name = name;
    simd.caller = caller;
    simd.site = site;
  } else if (simd.site != site || simd.code != code || !same_name(simd.name, name) ||
             !came_alike(*(fiber - fiber->lane + lowest(simd.waiting)), *fiber)) {
    simd.mismatch = true;
  }
  simd.waiting |= 1u << fiber->lane;
  Threadgroup& group = *fiber->threadgroup;
  if (!is_complete(simd)) [[likely]] {
    give_way(group, fiber);
  } else {
    complete(group, simd);
    go_on(group, fiber);
  }
}

}  // namespace

void metalsim_meet(Fiber* fiber, uint32_t code, const char* name, uint32_t site) {
  meet(fiber, code, name, site, __builtin_return_address(0));
}

void metalsim_agree(Fiber* fiber, uint32_t code, const char* name, uint32_t site) {
  fiber->name = name;
  fiber->site = site;
  fiber->code = code;
  fiber->frame = __builtin_frame_address(0);
  fiber->simdgroup->undecided |= 1u << fiber->lane;
  give_way(*fiber->threadgroup, fiber);
}

void metalsim_simdgroup_barrier(Fiber* fiber, uint32_t flags, uint32_t site) {
  meet(fiber, pack(Collective::barrier, flags & 15), "simdgroup_barrier", site,
       __builtin_return_address(0));
}

void metalsim_threadgroup_barrier(Fiber* fiber, uint32_t flags, uint32_t site) {
  Threadgroup& group = *fiber->threadgroup;
  fiber->name = "threadgroup_barrier";
  fiber->site = site;
  note_frame(fiber, __builtin_frame_address(0));
  if (group.arrived == 0) {
    group.barrier_first = fiber;
    group.barrier_flags = flags;
    group.barrier_caller = __builtin_return_address(0);
  }
  const Fiber& first = *group.barrier_first;
  if (first.site != site || !came_alike(first, *fiber)) group.barrier_mismatch = true;
  fiber->simdgroup->at_barrier |= 1u << fiber->lane;
  ++group.arrived;
  if (!all_arrived(group)) [[likely]] {
    give_way(group, fiber);
  } else {
    release(group, fiber);
    go_on(group, fiber);
  }
}

void metalsim_count(uint32_t counter, uint64_t amount) {
  if (running_fiber != nullptr)
    count(*running_fiber->threadgroup, static_cast<Counter>(counter), amount,
          __builtin_return_address(0));
}
