// Two contexts take turns; each keeps known values in every callee-saved register across the
// switch. Exits 0 when none is lost.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "context.h"

// Fills x19 to x28 and d8 to d15 from `seed`, switches away and back, and counts the registers that
// changed.
extern "C" uint64_t lost_registers(uint64_t seed, void** save, void* const* resume);
__asm__(
    ".text\n"
    "lost_registers:\n"
    "  stp x29, x30, [sp, #-176]!\n"
    "  stp x19, x20, [sp, #16]\n"
    "  stp x21, x22, [sp, #32]\n"
    "  stp x23, x24, [sp, #48]\n"
    "  stp x25, x26, [sp, #64]\n"
    "  stp x27, x28, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  str x0, [sp, #160]\n"
    "  .irp n, 19,20,21,22,23,24,25,26,27,28\n"
    "  add x\\n, x0, #\\n\n"
    "  .endr\n"
    "  .irp n, 8,9,10,11,12,13,14,15\n"
    "  add x10, x0, #(\\n + 100)\n"
    "  fmov d\\n, x10\n"
    "  .endr\n"
    "  mov x0, x1\n"
    "  ldr x1, [x2]\n"
    "  bl metalsim_switch_context\n"
    "  ldr x9, [sp, #160]\n"
    "  mov x0, #0\n"
    "  .irp n, 19,20,21,22,23,24,25,26,27,28\n"
    "  add x10, x9, #\\n\n"
    "  cmp x10, x\\n\n"
    "  cinc x0, x0, ne\n"
    "  .endr\n"
    "  .irp n, 8,9,10,11,12,13,14,15\n"
    "  add x10, x9, #(\\n + 100)\n"
    "  fmov x12, d\\n\n"
    "  cmp x10, x12\n"
    "  cinc x0, x0, ne\n"
    "  .endr\n"
    "  ldp x19, x20, [sp, #16]\n"
    "  ldp x21, x22, [sp, #32]\n"
    "  ldp x23, x24, [sp, #48]\n"
    "  ldp x25, x26, [sp, #64]\n"
    "  ldp x27, x28, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  ldp x29, x30, [sp], #176\n"
    "  ret\n");

namespace {

void* main_context;
void* other_context;
int turns;

void other() {
  for (uint64_t seed = 1000;; seed += 7) {
    ++turns;
    if (lost_registers(seed, &other_context, &main_context) != 0) {
      puts("the other context lost registers");
      exit(1);
    }
  }
}

}  // namespace

int main() {
  const size_t bytes = 65536;
  char* stack = static_cast<char*>(aligned_alloc(16, bytes));
  other_context = metalsim::make_context(stack + bytes, other);
  for (uint64_t round = 0; round < 1000; ++round) {
    const uint64_t lost = lost_registers(round * 12345, &main_context, &other_context);
    if (lost != 0) {
      printf("the main context lost %d registers in round %d\n", static_cast<int>(lost),
             static_cast<int>(round));
      return 1;
    }
  }
  printf("%d turns\n", turns);
  return turns == 1000 ? 0 : 1;
}
