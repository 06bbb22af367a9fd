// Reads of memory that nothing was written to: threadgroup variables, which begin anew with each
// threadgroup, a thread's own arrays, which begin anew where they are declared, and buffers that
// the caller says are fresh. One bit a byte says that it was written.
#include "checkers.h"

#if defined(METALSIM_CHECK)

#include <stdlib.h>
#include <string.h>

namespace metalsim {
namespace {

constexpr uint64_t arena_bits_bytes = arena_bytes / 8 + 1;
__thread uint8_t* arena_bits;

// The bits of memory that is watched, and the offset of its base in them; null for other memory.
uint8_t* bits_of(const Threadgroup& group, const Region& region, uint64_t& offset) {
  if (region.space == Space::threadgroup) {
    offset = static_cast<uint64_t>(region.base - group.arena);
    return arena_bits;
  }
  offset = 0;
  if (region.space == Space::thread) return region.array->written;
  if (region.space != Space::device || region.item != no_item) return nullptr;
  return group.launch->initialized[region.index];
}

bool is_written(const uint8_t* bits, uint64_t offset, uint64_t bytes) {
  for (uint64_t index = offset; index < offset + bytes; ++index)
    if (bits[index >> 3] >> (index & 7) & 1) return true;
  return false;
}

// Copies include the padding of vectors of three and of structures: nobody writes that. So a word
// of which a part was written counts as written, and so does anything wider than two words.
bool is_readable(const uint8_t* bits, uint64_t offset, uint64_t bytes) {
  if (bytes != 8) return is_written(bits, offset, bytes);
  return is_written(bits, offset, 4) && is_written(bits, offset + 4, 4);
}

void mark(uint8_t* bits, uint64_t offset, uint64_t bytes) {
  const uint64_t end = offset + bytes;
  for (; offset < end && (offset & 7) != 0; ++offset)
    bits[offset >> 3] |= static_cast<uint8_t>(1u << (offset & 7));
  for (; offset + 8 <= end; offset += 8) bits[offset >> 3] = 0xFF;
  for (; offset < end; ++offset) bits[offset >> 3] |= static_cast<uint8_t>(1u << (offset & 7));
}

}  // namespace

bool open_uninitialized(Threadgroup&) {
  arena_bits = static_cast<uint8_t*>(malloc(arena_bits_bytes));
  return arena_bits != nullptr;
}

void begin_uninitialized(Threadgroup&) { memset(arena_bits, 0, arena_bits_bytes); }

bool check_uninitialized(Fiber& fiber, const Access& access, const Region& region) {
  uint64_t offset;
  uint8_t* bits = bits_of(*fiber.threadgroup, region, offset);
  if (bits == nullptr) return true;
  offset += static_cast<uint64_t>(access.address - region.base);
  const bool is_read = access.kind == AccessKind::load || access.kind == AccessKind::atomic_load;
  if (!is_read)
    mark(bits, offset, access.bytes);
  else if (!is_readable(bits, offset, access.bytes)) [[unlikely]]
    report(fiber, METALSIM_UNINITIALIZED, access, region);
  return true;
}

void close_uninitialized() {
  free(arena_bits);
  arena_bits = nullptr;
}

}  // namespace metalsim

#endif
