// Accesses outside what is bound.
#include "checkers.h"

#if defined(METALSIM_CHECK)

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

#endif
