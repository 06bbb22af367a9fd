#include "context.h"

#include <stdint.h>

#if !defined(__x86_64__) && !defined(__aarch64__)
#error "metalsim runs on x86-64 and aarch64"
#endif

#if defined(__ELF__)
#define METALSIM_FUNCTION_TYPE ".type metalsim_switch_context, %function\n"
#define METALSIM_FUNCTION_HIDDEN ".hidden metalsim_switch_context\n"
#else
#define METALSIM_FUNCTION_TYPE ""
#define METALSIM_FUNCTION_HIDDEN ".private_extern metalsim_switch_context\n"
#endif

#if defined(__x86_64__)
// System V: rbp, rbx, r12 to r15 are the caller's; mxcsr and the x87 control word never change
// here.
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".globl metalsim_switch_context\n" METALSIM_FUNCTION_HIDDEN METALSIM_FUNCTION_TYPE
    "metalsim_switch_context:\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    "  popq %rcx\n"
    "  jmpq *%rcx\n");
#else
// AAPCS64: x19 to x28, the frame pointer, the link register and the low halves of v8 to v15.
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".globl metalsim_switch_context\n" METALSIM_FUNCTION_HIDDEN METALSIM_FUNCTION_TYPE
    "metalsim_switch_context:\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#endif

namespace metalsim {

void* make_context(void* top, void (*start)()) {
  uint64_t* word = static_cast<uint64_t*>(top);
#if defined(__x86_64__)
  *--word = 0;  // a return address that nothing returns to; keeps the stack as a call leaves it
  *--word = reinterpret_cast<uint64_t>(start);
  for (int saved = 0; saved < 6; ++saved) *--word = 0;
#else
  word -= 20;
  for (int saved = 0; saved < 20; ++saved) word[saved] = 0;
  word[11] = reinterpret_cast<uint64_t>(start);  // the link register
#endif
  return word;
}

}  // namespace metalsim
