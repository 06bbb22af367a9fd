// The CUDA engine behind the shim, for clang's NVPTX target: a simdgroup is a warp, a threadgroup a
// block of one dimension. No CUDA header is needed.
#pragma once

#include "../../machine/engine.h"

// Without debug information of its own, so that inlined code stands at the user's line.
#define METALSIM_INLINE inline __attribute__((always_inline, nodebug))
#define METALSIM_UNOBSERVED METALSIM_INLINE
#define METALSIM_DEVICE
#define METALSIM_CONSTANT
#define METALSIM_THREADGROUP
#define METALSIM_THREAD
#define METALSIM_KERNEL static inline __attribute__((always_inline))

// NVIDIA's mathematical function of one float precision: libdevice's, full precision.
#define METALSIM_MATH(name) __nv_##name##f

#define METALSIM_THREADGROUP_VARIABLE(kernel, id, name, ...)                                  \
  using metalsim_type_of_##name = __VA_ARGS__;                                                \
  static __attribute__((                                                                      \
      address_space(3), loader_uninitialized,                                                 \
      aligned(16))) unsigned char metalsim_memory_of_##name[sizeof(metalsim_type_of_##name)]; \
  metalsim::backend::escape((unsigned char*)metalsim_memory_of_##name);                       \
  metalsim_type_of_##name& name =                                                             \
      *reinterpret_cast<metalsim_type_of_##name*>((unsigned char*)metalsim_memory_of_##name)

#define METALSIM_ENTRY(number, arguments, ...)                           \
  extern "C" __attribute__((nvptx_kernel)) void metalsim_entry_##number( \
      const metalsim::backend::Launch launch) {                          \
    if (!metalsim::backend::begin(launch)) return;                       \
    metalsim::bind(&__VA_ARGS__) arguments;                              \
    metalsim::backend::end();                                            \
  }

#include "type_traits.h"

extern "C" {
float __nv_acosf(float);
float __nv_acoshf(float);
float __nv_asinf(float);
float __nv_asinhf(float);
float __nv_atan2f(float, float);
float __nv_atanf(float);
float __nv_atanhf(float);
float __nv_ceilf(float);
float __nv_copysignf(float, float);
float __nv_cosf(float);
float __nv_coshf(float);
float __nv_exp2f(float);
float __nv_expf(float);
float __nv_fabsf(float);
float __nv_fdimf(float, float);
float __nv_floorf(float);
float __nv_fmaf(float, float, float);
float __nv_fmaxf(float, float);
float __nv_fminf(float, float);
float __nv_fmodf(float, float);
float __nv_frexpf(float, int*);
int __nv_ilogbf(float);
float __nv_ldexpf(float, int);
float __nv_log10f(float);
float __nv_log2f(float);
float __nv_logf(float);
float __nv_nextafterf(float, float);
float __nv_powf(float, float);
float __nv_rintf(float);
float __nv_roundf(float);
float __nv_sinf(float);
float __nv_sinhf(float);
float __nv_tanf(float);
float __nv_tanhf(float);
float __nv_truncf(float);
}
// libdevice's is an approximation unless clang is told otherwise.
METALSIM_INLINE float __nv_sqrtf(float x) { return __builtin_sqrtf(x); }

namespace metalsim::backend {

// Why a thread ended a launch (cuda/driver.py has the same numbers).
enum class Failure : uint32_t { none, partial_simdgroup, wrong_scope };

// What the host passes to a kernel (cuda/driver.py has the same layout).
struct Launch {
  void* buffers[METALSIM_BUFFERS];
  uint32_t* failure;  // four words that the host can read, zero while all is well
  uint32_t grid[3];   // in threads
  uint32_t group[3];
  uint32_t groups[3];
  uint32_t threadgroup_bytes;  // of threadgroup variables
  uint32_t workspace_count;
  unsigned char* workspaces;   // for tensor operations: one a threadgroup that runs at a time
  uint32_t* workspace_owners;  // 0: free
};

// To the compiler, memory that the kernel never writes to is free to hold anything.
METALSIM_INLINE void escape(unsigned char* memory) {
  __asm__ volatile("" : : "l"(memory) : "memory");
}

// What every thread of a threadgroup may ask for. It lies in dynamic shared memory, behind the
// threadgroup variables.
struct State {
  Launch launch;
  uint32_t position[3];
  uint32_t size[3];  // of this threadgroup: smaller at the edge of the grid
  uint32_t thread_count;
  uint32_t returned;  // threads
  uint32_t workspace;
};
extern "C" __attribute__((address_space(3), aligned(16))) unsigned char metalsim_state[];

METALSIM_INLINE State& state() { return *reinterpret_cast<State*>((unsigned char*)metalsim_state); }

METALSIM_INLINE uint32_t thread_of_block() { return __nvvm_read_ptx_sreg_tid_x(); }

// Metal's lanes are the warp's in another order, the one that makes Apple's 8x8 matrices the
// operands of mma.sync: bits 3, 2, 1 of a warp's lane are bits 2, 1, 3 of Metal's.
METALSIM_INLINE constexpr uint32_t lane_of_warp(uint32_t lane) {
  return (lane & 17) | (lane & 4) << 1 | (lane & 2) << 1 | (lane & 8) >> 2;
}
METALSIM_INLINE constexpr uint32_t lane_from_warp(uint32_t lane) {
  return (lane & 17) | (lane & 8) >> 1 | (lane & 4) >> 1 | (lane & 2) << 2;
}

METALSIM_INLINE uint32_t lane() { return lane_from_warp(__nvvm_read_ptx_sreg_laneid()); }

METALSIM_INLINE void count(Counter, uint64_t = 1) {}

METALSIM_INLINE void* buffer(uint32_t index) { return state().launch.buffers[index]; }

METALSIM_INLINE uint32_t thread_index_in_threadgroup() {
  return (thread_of_block() & ~31u) | lane();
}

// The last thread of a threadgroup to come here gives back what the threadgroup holds.
METALSIM_INLINE void end() {
#if defined(METALSIM_COOPERATIVE_LAYOUT)
  __nvvm_membar_gl();
  if (__atomic_add_fetch(&state().returned, 1, __ATOMIC_RELAXED) != state().thread_count) return;
  __nvvm_membar_gl();
  __atomic_store_n(state().launch.workspace_owners + state().workspace, 0, __ATOMIC_RELAXED);
#endif
}

// Ends the calling thread; the host raises the first failure of a launch.
METALSIM_INLINE void fail(Failure failure, uint32_t site) {
  uint32_t* word = state().launch.failure;
  if (__atomic_exchange_n(word, static_cast<uint32_t>(failure), __ATOMIC_RELAXED) == 0) {
    word[1] = line_of(site);
    word[2] = thread_index_in_threadgroup() / simdgroup_width;
  }
  end();
  __asm__ volatile("exit;");
}

// There are as many workspaces as threadgroups that the GPU runs at a time, so one is free.
METALSIM_INLINE uint32_t free_workspace(const Launch& launch) {
  uint32_t index = __nvvm_read_ptx_sreg_ctaid_x() % launch.workspace_count;
  while (__atomic_exchange_n(launch.workspace_owners + index, 1, __ATOMIC_RELAXED) != 0)
    index = (index + 1) % launch.workspace_count;
  __nvvm_membar_gl();
  return index;
}

// Fills the threadgroup variables with NaN and writes the state; false for threads that a warp has
// and the threadgroup has not.
METALSIM_INLINE bool begin(const Launch& launch) {
  const uint32_t thread = thread_of_block();
  uint32_t end;
  __asm__("mov.u32 %0, metalsim_state;" : "=r"(end));
  const uint32_t bytes = (launch.threadgroup_bytes + 15) & ~15u;
  for (uint32_t offset = thread * 4; offset < bytes; offset += __nvvm_read_ptx_sreg_ntid_x() * 4)
    __asm__ volatile("st.shared.u32 [%0], %1;" : : "r"(end - bytes + offset), "r"(~0u) : "memory");
  if (thread == 0) {
    State& own = state();
    own.launch = launch;
    const uint32_t index = __nvvm_read_ptx_sreg_ctaid_x(), rest = index / launch.groups[0];
    own.position[0] = index % launch.groups[0];
    own.position[1] = rest % launch.groups[1];
    own.position[2] = rest / launch.groups[1];
    own.thread_count = 1;
    own.returned = 0;
#if defined(METALSIM_COOPERATIVE_LAYOUT)
    own.workspace = free_workspace(launch);
#endif
    for (int axis = 0; axis < 3; ++axis) {
      const uint32_t left = launch.grid[axis] - own.position[axis] * launch.group[axis];
      own.size[axis] = left < launch.group[axis] ? left : launch.group[axis];
      own.thread_count *= own.size[axis];
    }
  }
  __syncthreads();
  return thread_index_in_threadgroup() < state().thread_count;
}

METALSIM_INLINE void threadgroup_barrier(uint32_t, uint32_t) { __syncthreads(); }

METALSIM_INLINE void fence(uint32_t, uint32_t, uint32_t) { __nvvm_membar_gl(); }

METALSIM_INLINE void simdgroup_barrier(uint32_t, uint32_t) { __nvvm_bar_warp_sync(~0u); }

// The lanes of the warp that have not left the kernel and whose predicate holds. All that have not
// left must call it.
METALSIM_INLINE uint32_t vote(bool predicate) { return __nvvm_vote_ballot_sync(~0u, predicate); }

METALSIM_INLINE void need_full_simdgroup(uint32_t site) {
  if (vote(true) != ~0u) fail(Failure::partial_simdgroup, site);
}

METALSIM_INLINE uint32_t read_word(uint32_t word, uint32_t lane_of_warp) {
  return static_cast<uint32_t>(
      __nvvm_shfl_sync_idx_i32(~0u, static_cast<int>(word), static_cast<int>(lane_of_warp), 31));
}

template <class T>
METALSIM_INLINE T read_lane(T value, uint32_t lane_of_warp) {
  uint32_t words[(sizeof(T) + 3) / 4] = {};
  __builtin_memcpy(words, static_cast<const void*>(&value), sizeof(T));
#pragma clang loop unroll(full)
  for (uint32_t& word : words) word = read_word(word, lane_of_warp);
  __builtin_memcpy(static_cast<void*>(&value), words, sizeof(T));
  return value;
}

// The value of lane `source`; all bits set when that lane takes no part, for which Metal defines
// nothing.
template <class T>
METALSIM_INLINE T shuffle(T value, uint32_t source, const char*, uint32_t) {
  const uint32_t from = lane_of_warp(source & 31), present = vote(true);
  value = read_lane(value, from);
  if (source >= simdgroup_width || !(present >> from & 1))
    __builtin_memset(static_cast<void*>(&value), 0xFF, sizeof(T));
  return value;
}

// Exchanges the bits of `mask` at distance `shift` that `chosen` selects.
METALSIM_INLINE uint32_t exchange_bits(uint32_t mask, uint32_t chosen, uint32_t shift) {
  const uint32_t moved = (mask ^ mask >> shift) & chosen;
  return mask ^ moved ^ moved << shift;
}

// The lanes of this collective whose predicate holds, in Metal's order: two exchanges of index bits
// (3 with 2, then 3 with 1) are lane_from_warp.
METALSIM_INLINE uint64_t ballot(bool predicate, const char*, uint32_t) {
  return exchange_bits(exchange_bits(vote(predicate), 0x00F000F0, 4), 0x00CC00CC, 6);
}

// The lanes that have not left the kernel.
METALSIM_INLINE uint32_t active_lanes() { return static_cast<uint32_t>(ballot(true, nullptr, 0)); }

template <class T>
METALSIM_INLINE T identity(Combine operation) {
  constexpr bool is_signed = static_cast<T>(-1) < static_cast<T>(0);
  constexpr T least = is_signed ? static_cast<T>(1ull << (8 * sizeof(T) - 1)) : T(0);
  if (operation == Combine::product) return T(1);
  if (operation == Combine::bit_and) return static_cast<T>(~0ull);
  if (operation == Combine::minimum) return static_cast<T>(~static_cast<uint64_t>(least));
  return operation == Combine::maximum ? least : T(0);
}
template <>
METALSIM_INLINE float identity<float>(Combine operation) {
  if (operation == Combine::minimum) return __builtin_inff();
  if (operation == Combine::maximum) return -__builtin_inff();
  return operation == Combine::product ? 1.0f : 0.0f;
}

template <class T>
METALSIM_INLINE T combined(Combine operation, T a, T b) {
  switch (operation) {
    case Combine::sum:
      return static_cast<T>(a + b);
    case Combine::product:
      return static_cast<T>(a * b);
    case Combine::minimum:
      return b < a || a != a ? b : a;  // a number rather than a NaN
    case Combine::maximum:
      return a < b || a != a ? b : a;
    default:
      break;
  }
  if constexpr (!__is_same(T, float)) {
    if (operation == Combine::bit_and) return a & b;
    return operation == Combine::bit_or ? a | b : a ^ b;
  }
  return a;
}

// Reductions and scans in the order of the CPU engine, so that floats get the same bits. half and
// bfloat are combined as floats and rounded to Element after each operation.
template <class Element>
struct Fold {
  using Wide = metal::conditional_t<real<Element>, float, Element>;
  Combine operation;

  METALSIM_INLINE Wide apply(Wide a, Wide b) const {
    return static_cast<Wide>(static_cast<Element>(combined(operation, a, b)));
  }
  // By halves: lane i takes lane i + 16, then i + 8, and so on; the lower lane is always on the
  // left.
  METALSIM_INLINE Element reduce(Wide value) const {
#pragma clang loop unroll(full)
    for (uint32_t half = simdgroup_width / 2; half != 0; half /= 2) {
      const Wide other = read_lane(value, lane_of_warp(lane() ^ half));
      value = lane() & half ? apply(other, value) : apply(value, other);
    }
    return static_cast<Element>(value);
  }
  // The same where lanes have left: their share is the neutral value.
  METALSIM_INLINE Element reduce_present(Wide value, uint32_t present) const {
    Wide values[simdgroup_width];
    for (uint32_t from = 0; from < simdgroup_width; ++from) {
      const Wide read = read_lane(value, lane_of_warp(from));
      values[from] = present >> lane_of_warp(from) & 1 ? read : identity<Wide>(operation);
    }
    for (uint32_t half = simdgroup_width / 2; half != 0; half /= 2)
      for (uint32_t to = 0; to < half; ++to) values[to] = apply(values[to], values[to + half]);
    return static_cast<Element>(values[0]);
  }
  // One lane after another.
  METALSIM_INLINE Element scan(Wide value, uint32_t present, bool inclusive) const {
    Wide running = identity<Wide>(operation), result = running;
    for (uint32_t from = 0; from < simdgroup_width; ++from) {
      if (!(present >> lane_of_warp(from) & 1)) continue;
      const Wide before = running;
      running = apply(running, read_lane(value, lane_of_warp(from)));
      if (from == lane()) result = inclusive ? running : before;
    }
    return static_cast<Element>(result);
  }
};

// Combines `components` scalars over the lanes, in place.
template <class Element>
METALSIM_INLINE void combine(Collective collective, Combine operation, ScalarType, Element* values,
                             uint32_t components, const char*, uint32_t) {
  using Wide = typename Fold<Element>::Wide;
  const Fold<Element> fold = {operation};
  const uint32_t present = vote(true);
  for (uint32_t index = 0; index < components; ++index) {
    Wide value = static_cast<Wide>(values[index]);
    if (collective != Collective::reduction) {
      values[index] = fold.scan(value, present, collective == Collective::inclusive_scan);
      continue;
    }
    values[index] = present == ~0u ? fold.reduce(value) : fold.reduce_present(value, present);
  }
}

struct Position {
  uint32_t x, y, z;
};

METALSIM_INLINE Position position_of(const uint32_t (&axes)[3]) {
  return {axes[0], axes[1], axes[2]};
}

METALSIM_INLINE Position threadgroup_position_in_grid() { return position_of(state().position); }
METALSIM_INLINE Position threads_per_threadgroup() { return position_of(state().size); }
METALSIM_INLINE Position dispatch_threads_per_threadgroup() {
  return position_of(state().launch.group);
}
METALSIM_INLINE Position threadgroups_per_grid() { return position_of(state().launch.groups); }
METALSIM_INLINE Position threads_per_grid() { return position_of(state().launch.grid); }
METALSIM_INLINE Position thread_position_in_threadgroup() {
  const uint32_t thread = thread_index_in_threadgroup();
  const uint32_t x = state().size[0], y = state().size[1];
  return {thread % x, thread / x % y, thread / x / y};
}
METALSIM_INLINE uint32_t simdgroups_per_threadgroup() {
  return (state().thread_count + simdgroup_width - 1) / simdgroup_width;
}

}  // namespace metalsim::backend

#include "matrix_cuda.h"
#if defined(METALSIM_COOPERATIVE_LAYOUT)
#include "tensor_cuda.h"
#endif
