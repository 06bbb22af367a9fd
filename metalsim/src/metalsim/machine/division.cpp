// Integer division by zero, whose value Metal leaves open. An x86-64 processor raises a signal
// instead, which is answered while launches run: quotient and remainder are all ones, and the
// thread goes on. Other processors give a value by themselves.
#include "division.h"

#if defined(__x86_64__)

#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <ucontext.h>

#include "threadgroup.h"

namespace metalsim {
namespace {

pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
uint32_t launches = 0;
struct sigaction previous;

struct Division {
  uint32_t length;         // of the instruction
  uint32_t operand_bytes;  // 0: no division
};

// div and idiv: prefixes, the opcode F6 or F7, then the operand's address.
Division read_division(const unsigned char* code) {
  const unsigned char* at = code;
  uint32_t operand_bytes = 4;
  for (; *at == 0x66 || *at == 0x67 || *at == 0x64 || *at == 0x65; ++at)
    if (*at == 0x66) operand_bytes = 2;
  if ((*at & 0xF0) == 0x40 && *at++ & 8) operand_bytes = 8;
  if (*at == 0xF6) operand_bytes = 1;
  const bool is_division = (*at == 0xF6 || *at == 0xF7) && (at[1] >> 3 & 7) >= 6;
  if (!is_division) return {0, 0};
  const uint32_t mode = at[1] >> 6, operand = at[1] & 7;
  at += 2;
  bool is_absolute = mode == 0 && operand == 5;
  if (mode != 3 && operand == 4) is_absolute = mode == 0 && (*at++ & 7) == 5;
  if (mode == 1) at += 1;
  if (mode == 2 || is_absolute) at += 4;
  return {static_cast<uint32_t>(at - code), operand_bytes};
}

struct Registers {
  uint64_t *instruction, *quotient, *remainder;
};

template <class Register>
uint64_t* as_word(Register& value) {
  static_assert(sizeof value == sizeof(uint64_t));
  return reinterpret_cast<uint64_t*>(&value);
}

Registers registers_of(void* context) {
#if defined(__APPLE__)
  auto& state = static_cast<ucontext_t*>(context)->uc_mcontext->__ss;
  return {as_word(state.__rip), as_word(state.__rax), as_word(state.__rdx)};
#else
  auto& state = static_cast<ucontext_t*>(context)->uc_mcontext.gregs;
  return {as_word(state[REG_RIP]), as_word(state[REG_RAX]), as_word(state[REG_RDX])};
#endif
}

uint64_t with_ones(uint64_t value, uint32_t bytes) {
  if (bytes >= 4) return ~0ull >> (bytes == 4 ? 32 : 0);
  return value | 0xFFFF;  // of one byte: quotient and remainder are the halves of ax
}

void answer(int, siginfo_t*, void* context) {
  const Registers registers = registers_of(context);
  const Division division =
      read_division(reinterpret_cast<const unsigned char*>(*registers.instruction));
  if (running_fiber == nullptr || division.operand_bytes == 0) {
    // Not ours: it happens again, and meets whoever was responsible before.
    sigaction(SIGFPE, &previous, nullptr);
    return;
  }
  *registers.quotient = with_ones(*registers.quotient, division.operand_bytes);
  if (division.operand_bytes > 1)
    *registers.remainder = with_ones(*registers.remainder, division.operand_bytes);
  *registers.instruction += division.length;
}

}  // namespace

DivisionScope::DivisionScope() {
  pthread_mutex_lock(&mutex);
  if (launches++ == 0) {
    struct sigaction action = {};
    action.sa_sigaction = answer;
    action.sa_flags = SA_SIGINFO;
    sigaction(SIGFPE, &action, &previous);
  }
  pthread_mutex_unlock(&mutex);
}

DivisionScope::~DivisionScope() {
  pthread_mutex_lock(&mutex);
  if (--launches == 0) sigaction(SIGFPE, &previous, nullptr);
  pthread_mutex_unlock(&mutex);
}

}  // namespace metalsim

#else

namespace metalsim {

DivisionScope::DivisionScope() {}
DivisionScope::~DivisionScope() {}

}  // namespace metalsim

#endif
