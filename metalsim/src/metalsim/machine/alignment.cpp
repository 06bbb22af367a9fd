// Pointers to vectors that are not aligned as their types demand: -fsanitize=alignment calls this
// where one is used; nothing of the sanitizer's runtime is linked.
#include "checkers.h"

#if defined(METALSIM_CHECK)

using namespace metalsim;

namespace {

// The layout that compilers emit (compiler-rt's ubsan_handlers.h).
struct TypeMismatch {
  const char* file;
  uint32_t line;
  uint32_t column;
  const void* type;
  unsigned char log_alignment;
  unsigned char use;  // 0: a load, 1: a store, others: a member function and so on
};

}  // namespace

extern "C" {

// The instruction that follows may trap on this machine, so the thread cannot go on.
METALSIM_API void __ubsan_handle_type_mismatch_v1(TypeMismatch* data, void* address) {
  Fiber* fiber = running_fiber;
  if (fiber == nullptr || !(fiber->threadgroup->launch->checks & METALSIM_ALIGNMENT)) return;
  const uint32_t alignment = 1u << data->log_alignment;
  const AccessKind kind = data->use == 0   ? AccessKind::load
                          : data->use == 1 ? AccessKind::store
                                           : AccessKind::use;
  const Access access = {static_cast<const unsigned char*>(address), alignment, kind,
                         __builtin_return_address(0)};
  Region region;
  if (!find_region(*fiber, access, region)) return;
  report(*fiber, METALSIM_ALIGNMENT, access, region, nullptr, alignment);
  retire(fiber);
}
}

#endif
