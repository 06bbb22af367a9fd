// Accesses outside what is bound, and indices outside of arrays wherever these lie: clang's
// -fsanitize=array-bounds calls this for the latter; nothing of the sanitizer's runtime is linked.
#include "checkers.h"

#if defined(METALSIM_CHECK)

#include <string.h>

namespace metalsim {

bool check_bounds(Fiber& fiber, const Access& access, const Region& region) {
  if (region.space == Space::unbound) {
    // A compiler may load early through a reference, which it trusts to be bound; a pointer it may
    // not.
    const bool reference = fiber.threadgroup->entry->reference_buffers >> region.index & 1;
    if (reference && access.kind == AccessKind::load) return true;
  } else if (region.space != Space::unknown) {
    return true;
  }
  report(fiber, METALSIM_BOUNDS, access, region);
  return false;
}

}  // namespace metalsim

using namespace metalsim;

namespace {

// The layouts that compilers emit (compiler-rt's ubsan_value.h and ubsan_handlers.h).
struct TypeDescriptor {
  uint16_t kind;
  uint16_t info;  // of an integer: 1 if signed, and the logarithm of its bits twice
  char name[1];
};
struct OutOfBounds {
  const char* file;
  uint32_t line;
  uint32_t column;
  const TypeDescriptor* array;
  const TypeDescriptor* index;
};

// The types by which the front end declares the arrays whose every access is watched.
constexpr char watched_type[] = "'metalsim_type_of_";

int64_t value_of(const TypeDescriptor& type, uintptr_t bits) {
  const uint32_t unused = 64 - (1u << (type.info >> 1));
  const uint64_t shifted = static_cast<uint64_t>(bits) << unused;
  return type.info & 1 ? static_cast<int64_t>(shifted) >> unused
                       : static_cast<int64_t>(shifted >> unused);
}

}  // namespace

extern "C" {

// What the thread would do next may hit the machine itself, so it cannot go on.
METALSIM_API void __ubsan_handle_out_of_bounds(OutOfBounds* data, uintptr_t index) {
  Fiber* fiber = running_fiber;
  if (fiber == nullptr || !(fiber->threadgroup->launch->checks & METALSIM_BOUNDS)) return;
  const char* type = data->array->name;
  if (strncmp(type, watched_type, sizeof watched_type - 1) == 0) return;
  report_index(*fiber, __builtin_return_address(0), type, value_of(*data->index, index));
  retire(fiber);
}
}

#endif
