// What a kernel library and the runtime share: threads as fibers, simdgroups with their exchange
// areas, the rendezvous calls. Freestanding: kernels include it through the shim, beside no C or
// C++ library header.
#pragma once

#include "abi.h"

// As a default argument: the site of the call, see line_of.
#if defined(__clang__)
#define METALSIM_SITE (__builtin_LINE() | __builtin_COLUMN() << metalsim::site_line_bits)
#else
// g++ tells the column to the library's std::source_location alone.
namespace std {
struct source_location {
  struct __impl {
    const char* _M_file_name;
    const char* _M_function_name;
    unsigned _M_line;
    unsigned _M_column;
  };
};
}  // namespace std
#define METALSIM_SITE                                                                       \
  (__builtin_LINE() |                                                                       \
   static_cast<const std::source_location::__impl*>(__builtin_source_location())->_M_column \
       << metalsim::site_line_bits)
#endif

// The way to a rendezvous is the code that it returns to, where compilers neither copy nor merge
// the calls that lead there.
#if defined(__clang__) && (defined(METALSIM_CHECK) || defined(METALSIM_INACTIVE_LANES))
#define METALSIM_RENDEZVOUS METALSIM_API __attribute__((convergent))
#else
#define METALSIM_RENDEZVOUS METALSIM_API
#endif

namespace metalsim {

inline constexpr uint32_t simdgroup_width = 32;
inline constexpr uint32_t max_threads = 1024;
inline constexpr uint32_t max_threadgroup_bytes = 32768;
inline constexpr uint32_t max_variables = 1024;  // threadgroup variables in one program
inline constexpr uint32_t exchange_bytes = 1024;

// Where a call stands in the source: its line, and above that its column.
inline constexpr uint32_t site_line_bits = 20;
constexpr uint32_t line_of(uint32_t site) { return site & ((1u << site_line_bits) - 1); }

enum class ScalarType : uint32_t {
  float32,
  float16,
  bfloat16,
  int8,
  uint8,
  int16,
  uint16,
  int32,
  uint32,
  int64,
  uint64,
};

enum class Combine : uint32_t { sum, product, minimum, maximum, bit_and, bit_or, bit_xor };

enum class Collective : uint32_t {
  barrier,  // simdgroup_barrier
  shuffle,
  ballot,
  reduction,
  inclusive_scan,
  exclusive_scan,
  matrix_multiply,
  tensor_multiply,
  tensor_exchange,  // lanes read what others left in the simdgroup's workspace
};

// What the last lane to arrive does, packed into one word: the collective and its operand types.
constexpr uint32_t pack(Collective collective, uint32_t a = 0, uint32_t b = 0, uint32_t c = 0,
                        uint32_t d = 0) {
  return static_cast<uint32_t>(collective) | a << 8 | b << 12 | c << 16 | d << 20;
}

constexpr uint32_t pack(Collective collective, Combine combine, ScalarType type,
                        uint32_t components) {
  return pack(collective, static_cast<uint32_t>(combine), static_cast<uint32_t>(type), components);
}

// The offsets of a matrix multiply's operands in the exchange area: 8x8 row-major elements each.
inline constexpr uint32_t matrix_operand_bytes = 256;

// Where the lanes of a simdgroup lay the operands of a tensor operation. A simdgroup has two that
// take turns, so a lane may begin the next operation while others still read the last one's result.
inline constexpr uint32_t workspace_bytes = 256 * 1024;

// sums += left * right, which is what a tensor_multiply finds in the exchange area: row-major
// matrices of float, or of int32_t if `integers`.
struct TensorMultiply {
  const void* left;
  const void* right;
  void* sums;
  uint32_t rows;
  uint32_t left_stride;
  uint32_t columns;  // a multiple of 16; the stride of right and sums too
  uint32_t depth;
  bool integers;
  bool last;  // of its operation
};

// The lanes of one simdgroup as bit masks. Operands of a collective go through `exchange`; two
// areas take turns, so a lane may begin the next collective while others still read the results of
// the last.
struct alignas(64) Simdgroup {
  uint32_t existing;
  uint32_t present;  // existing, and not returned from the kernel
  uint32_t runnable;
  uint32_t waiting;     // at the pending collective
  uint32_t at_barrier;  // at a threadgroup barrier
  uint32_t active;      // took part in the last collective
  uint32_t retired;     // no longer present, and nobody waits for them
  uint32_t undecided;   // in metalsim_agree
  uint32_t aside;       // take no part in the collective that was agreed on
  uint32_t parity;
  uint32_t code;  // the pending collective: what its first lane asked for
  const char* name;
  const void* caller;  // the code that asked
  uint32_t site;
  uint32_t index;
  uint32_t turn;           // which of its two workspaces the next tensor operation uses
  uint32_t scope_entries;  // into operations of several simdgroups
  uint32_t scope_site;
  bool mismatch;  // the waiting lanes want different collectives
  alignas(64) unsigned char exchange[2][exchange_bytes];
};

struct Threadgroup;

// An array of a thread that checkers watch; it lives on the thread's stack, beside the array.
struct PrivateArray {
  PrivateArray* outer;  // declared before this one, and still alive
  unsigned char* base;
  uint64_t bytes;
  unsigned char* written;  // a bit a byte
  const char* name;
};
inline constexpr uint64_t array_gap = 128;  // before and after each

struct alignas(64) Fiber {
  void* stack_pointer;
  Simdgroup* simdgroup;
  Threadgroup* threadgroup;
  const char* name;   // what it waits for, and where
  const void* frame;  // of its call of the machine, where the way there is known
  uint32_t site;
  uint16_t lane;
  uint16_t thread;  // index in the threadgroup
  uint32_t position[3];
  uint32_t code;  // of the collective that it would agree on
#if defined(METALSIM_CHECK)
  PrivateArray* arrays;  // the latest
#endif
};

enum Counter : uint32_t {
  matrix_multiplies,
  device_bytes_loaded,
  device_bytes_stored,
  constant_bytes_loaded,
  threadgroup_bytes_loaded,
  threadgroup_bytes_stored,
  threadgroup_barriers,
  simdgroup_barriers,
  shuffles,
  reductions,
  votes,
  exponentials,
  atomics,
  tensor_multiply_adds,
  logarithms,
  square_roots,
  trigonometric,
  device_loads,  // from here on in launches that profile alone: accesses of a simdgroup
  device_stores,
  device_lines_loaded,
  device_lines_stored,
  threadgroup_loads,
  threadgroup_stores,
  bank_conflicts,
  counter_count,
};

struct ThreadgroupVariable {
  unsigned char* base;
  const char* name;
  uint32_t bytes;
};

// The part of a threadgroup that kernels read: where it stands and what is bound.
struct ThreadgroupView {
  uint32_t position[3];
  uint32_t size[3];    // of this threadgroup: smaller at the edge of the grid
  uint32_t group[3];   // as dispatched
  uint32_t groups[3];  // in the grid
  uint32_t grid[3];    // in threads
  uint32_t simdgroup_count;
  uint32_t thread_count;
  void* buffers[METALSIM_BUFFERS];
  uint64_t counters[counter_count];
  ThreadgroupVariable variables[max_variables];
};

// Apple's layout of an 8x8 matrix over 32 lanes, two neighbours of a row each (MLX's get_coord and
// others agree).
constexpr uint32_t matrix_row(uint32_t lane) { return (lane / 4 & 4) + lane / 2 % 4; }
constexpr uint32_t matrix_column(uint32_t lane) { return (lane / 4 & 2) * 2 + lane % 2 * 2; }

inline const ThreadgroupView& view(const Fiber* fiber) {
  return *reinterpret_cast<const ThreadgroupView*>(fiber->threadgroup);
}

}  // namespace metalsim

extern "C" {

// The fiber that runs now, null outside kernels, and its lane. To the code of one kernel both are
// constants, which `const` tells the compiler: it keeps them in registers across collectives.
METALSIM_API metalsim::Fiber* metalsim_current_fiber(void) __attribute__((const));
METALSIM_API uint32_t metalsim_current_lane(void) __attribute__((const));

// Waits until every present lane of the simdgroup asks for the same collective, then carries it
// out.
METALSIM_RENDEZVOUS void metalsim_meet(metalsim::Fiber* fiber, uint32_t code, const char* name,
                                       uint32_t site);

// Where lanes may diverge (METALSIM_INACTIVE_LANES), in front of each collective and before the
// operands are written: waits until every lane of the simdgroup waits for something, then lets
// those go on that wait for the same collective and come first in the program.
METALSIM_RENDEZVOUS void metalsim_agree(metalsim::Fiber* fiber, uint32_t code, const char* name,
                                        uint32_t site);

// Waits until every thread of the threadgroup stands at the same barrier.
METALSIM_RENDEZVOUS void metalsim_threadgroup_barrier(metalsim::Fiber* fiber, uint32_t flags,
                                                      uint32_t site);

// simdgroup_barrier: a collective that orders the memory named by flags.
METALSIM_RENDEZVOUS void metalsim_simdgroup_barrier(metalsim::Fiber* fiber, uint32_t flags,
                                                    uint32_t site);

// The first thread of a threadgroup that reaches a variable allocates it, filled with 0xFF (NaN).
METALSIM_API void* metalsim_threadgroup_variable(metalsim::Fiber* fiber, uint32_t id,
                                                 uint32_t bytes, uint32_t alignment,
                                                 const char* name);

// The workspace of the fiber's simdgroup for the operation that begins.
METALSIM_API unsigned char* metalsim_tensor_workspace(metalsim::Fiber* fiber);

// A thread enters an operation that all of the `simdgroups` of its threadgroup carry out.
METALSIM_API void metalsim_enter_scope(metalsim::Fiber* fiber, uint32_t simdgroups,
                                       const char* name, uint32_t site);

// atomic_thread_fence, with MSL's numbers for memory, order and scope.
METALSIM_API void metalsim_fence(metalsim::Fiber* fiber, uint32_t flags, uint32_t order,
                                 uint32_t scope);

METALSIM_API void metalsim_count(uint32_t counter, uint64_t amount);

// In checking builds: an array of the fiber comes to life, or ends as the latest of those alive.
METALSIM_API void metalsim_enter_array(metalsim::Fiber* fiber, metalsim::PrivateArray* array);
METALSIM_API void metalsim_leave_array(metalsim::Fiber* fiber, metalsim::PrivateArray* array);
}
