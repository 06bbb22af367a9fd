// Lanes that diverge. Where a program allows it, a collective is one of the lanes that reach it
// together. Metal does not say which these are; here, as on the GPUs that are known, lanes that
// left each other meet again where their ways join: whoever is behind in the program goes first.
#include "threadgroup.h"

namespace metalsim {
namespace {

// The calls that lead to a collective, by the code that each returns to, innermost first.
struct Calls {
  static constexpr uint32_t most = 32;
  uintptr_t code[most];
  uint32_t count;
};

// Frames hold the address of their caller's frame, then that of the code to return to.
Calls calls_of(const Fiber& fiber) {
  const Threadgroup& group = *fiber.threadgroup;
  const unsigned char* top = group.stacks + group.stack_stride * (fiber.thread + 1u);
  Calls calls = {};
  const auto* frame = static_cast<const unsigned char*>(fiber.frame);
  while (calls.count < Calls::most && frame + 2 * sizeof(uintptr_t) <= top) {
    const auto* words = reinterpret_cast<const uintptr_t*>(frame);
    calls.code[calls.count++] = words[1];
    const auto* next = reinterpret_cast<const unsigned char*>(words[0]);
    if (next <= frame) break;
    frame = next;
  }
  return calls;
}

// Kernels are compiled so that code lies in the order of the program.
bool is_before(const Calls& a, const Calls& b) {
  for (uint32_t depth = 1; depth <= a.count && depth <= b.count; ++depth) {
    const uintptr_t of_a = a.code[a.count - depth], of_b = b.code[b.count - depth];
    if (of_a != of_b) return of_a < of_b;
  }
  return a.count < b.count;
}

bool is_same(const Fiber& a, const Fiber& b) {
  return a.code == b.code && a.site == b.site && same_name(a.name, b.name) && is_same_way(a, b);
}

uint32_t companions(const Simdgroup& simd, const Fiber* lanes, const Fiber& fiber) {
  uint32_t together = 0;
  for (uint32_t left = simd.undecided; left != 0; left &= left - 1)
    if (is_same(lanes[__builtin_ctz(left)], fiber)) together |= left & -left;
  return together;
}

}  // namespace

bool is_same_way([[maybe_unused]] const Fiber& a, [[maybe_unused]] const Fiber& b) {
#if defined(__clang__)
  if (a.frame == nullptr || b.frame == nullptr) return true;
  const Calls of_a = calls_of(a), of_b = calls_of(b);
  return of_a.count == of_b.count &&
         __builtin_memcmp(of_a.code, of_b.code, of_a.count * sizeof *of_a.code) == 0;
#else
  return true;  // g++ copies and merges calls as it likes
#endif
}

void decide(Threadgroup& group, Simdgroup& simd) {
  const Fiber* lanes = &group.fibers[simd.index * simdgroup_width];
  uint32_t chosen = 0, seen = 0;
  Calls first = {};
  for (uint32_t left = simd.undecided; left != 0; left &= ~seen) {
    const Fiber& fiber = lanes[__builtin_ctz(left)];
    const uint32_t together = companions(simd, lanes, fiber);
    seen |= together;
    if (needs_every_lane(fiber.code) && together != simd.present) continue;
    const Calls calls = calls_of(fiber);
    if (chosen != 0 && !is_before(calls, first)) continue;
    chosen = together;
    first = calls;
  }
  if (chosen == 0) return;
  simd.undecided &= ~chosen;
  simd.aside = simd.present & ~chosen;
  simd.runnable = chosen;
  group.runnable_simdgroups |= 1u << simd.index;
}

}  // namespace metalsim
