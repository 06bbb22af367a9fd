// The context switch between fibers: callee-saved registers and the stack pointer, nothing else.
#pragma once

#include <stddef.h>

namespace metalsim {

// Saves the running context, leaves its stack pointer in *save and continues the context that
// `resume` saved.
void switch_context(void** save, void* resume) __asm__("metalsim_switch_context");

// Prepares a context that starts in `start` (which never returns) on the stack that ends at `top`
// (16-aligned).
void* make_context(void* top, void (*start)());

}  // namespace metalsim
