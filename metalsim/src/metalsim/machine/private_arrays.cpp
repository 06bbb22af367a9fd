// A thread's own arrays. The front end declares each between two gaps, in which nothing lies; what
// a thread accesses of its stack is one of these arrays, a gap, or a variable that nobody watches.
#include "regions.h"

#if defined(METALSIM_CHECK)

#include <string.h>

namespace metalsim {
namespace {

bool within(const unsigned char* address, uint64_t bytes, const unsigned char* begin,
            uint64_t size) {
  const uint64_t offset = static_cast<uint64_t>(address - begin);
  return offset < size && bytes <= size - offset;
}

// The stack that the fiber uses now. The frames of the checkers themselves lie at its low end.
bool in_use(const Fiber& fiber, const unsigned char* address) {
  const Threadgroup& group = *fiber.threadgroup;
  const unsigned char* top = group.stacks + group.stack_stride * (fiber.thread + 1u);
  const auto* bottom = static_cast<const unsigned char*>(__builtin_frame_address(0));
  return address >= bottom && address < top;
}

}  // namespace

bool in_gap(const Fiber& fiber, const unsigned char* address, uint64_t bytes) {
  for (const PrivateArray* array = fiber.arrays; array != nullptr; array = array->outer)
    if (within(address, bytes, array->base - array_gap, array->bytes + 2 * array_gap)) return true;
  return false;
}

bool find_private(const Fiber& fiber, const Access& access, Region& region) {
  for (const PrivateArray* array = fiber.arrays; array != nullptr; array = array->outer) {
    if (!within(access.address, access.bytes, array->base, array->bytes)) continue;
    region = {Space::thread, 0, no_item, 0, array->base, array->bytes, array};
    return true;
  }
  const Threadgroup& group = *fiber.threadgroup;
  if (access.address < group.stacks) return false;  // what the lanes of a simdgroup exchange
  if (in_use(fiber, access.address) && !in_gap(fiber, access.address, access.bytes)) return false;
  region = {Space::unknown, 0, no_item, 0, nullptr, 0};
  return true;
}

}  // namespace metalsim

using namespace metalsim;

void metalsim_enter_array(Fiber* fiber, PrivateArray* array) {
  memset(array->written, 0, (array->bytes + 7) / 8);
  array->outer = fiber->arrays;
  fiber->arrays = array;
}

void metalsim_leave_array(Fiber* fiber, PrivateArray* array) { fiber->arrays = array->outer; }

#endif
