// Races in threadgroup memory: what orders two accesses, and what does not.
// How to read the marks: test_cases.py.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// finds no_barrier --buffers zeros:float32:64 --threads 64 --group 64
// finds no_barrier --buffers zeros:float32:32 --threads 32 --group 32
// clean no_barrier --buffers zeros:float32:1 --threads 1 --group 1
kernel void no_barrier(device float* out, uint i [[thread_position_in_threadgroup]],
                       uint size [[threads_per_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;                  // race 1 write
  out[i] = shared[size - 1 - i];  // race 1 read
}

// clean barrier --buffers zeros:float32:64 --threads 64 --group 64
kernel void barrier(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[63 - i];
}

// clean barrier_for_both --buffers zeros:float32:64 --threads 64 --group 64
kernel void barrier_for_both(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;
  threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);
  out[i] = shared[63 - i];
}

// finds barrier_none --buffers zeros:float32:64 --threads 64 --group 64
kernel void barrier_none(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;  // race 1 write
  threadgroup_barrier(mem_flags::mem_none);
  out[i] = shared[63 - i];  // race 1 read
}

// finds barrier_for_device --buffers zeros:float32:64 --threads 64 --group 64
kernel void barrier_for_device(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;  // race 1 write
  threadgroup_barrier(mem_flags::mem_device);
  out[i] = shared[63 - i];  // race 1 read
}

// Across simdgroups, a simdgroup barrier orders nothing. It is enough for a threadgroup that is one
// simdgroup.
// finds barrier_too_small --buffers zeros:float32:64 --threads 64 --group 64
// clean barrier_too_small --buffers zeros:float32:32 --threads 32 --group 32
kernel void barrier_too_small(device float* out, uint i [[thread_position_in_threadgroup]],
                              uint size [[threads_per_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;  // race 1 write
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[size - 1 - i];  // race 1 read
}

// clean barrier_of_simdgroup --buffers zeros:float32:64 --threads 64 --group 64
kernel void barrier_of_simdgroup(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[i ^ 31];
}

// finds barrier_of_simdgroup_none --buffers zeros:float32:64 --threads 64 --group 64
kernel void barrier_of_simdgroup_none(device float* out,
                                      uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;  // race 1 write
  simdgroup_barrier(mem_flags::mem_none);
  out[i] = shared[i ^ 31];  // race 1 read
}

// Lanes in lockstep are no promise of Metal, and shuffles and reductions order no memory.
// finds shuffle_is_no_barrier --buffers zeros:float32:32 --threads 32 --group 32
kernel void shuffle_is_no_barrier(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  shared[i] = i;  // race 1 write
  float sum = simd_sum(simd_shuffle_xor(float(i), 1));
  out[i] = shared[i ^ 1] + sum;  // race 1 read
}

// finds next_iteration --buffers zeros:float32:64 0 --threads 64 --group 64
// clean next_iteration --buffers zeros:float32:64 1 --threads 64 --group 64
kernel void next_iteration(device float* out, constant int& once [[buffer(1)]],
                           uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  float sum = 0;
  int count = 4 - 3 * (once == 1);
  for (int turn = 0; turn < count; ++turn) {
    shared[i] = turn;  // race 1 write
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += shared[63 - i];  // race 1 read
  }
  out[i] = sum;
}

// clean two_barriers_a_turn --buffers zeros:float32:64 --threads 64 --group 64
kernel void two_barriers_a_turn(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  float sum = 0;
  for (int turn = 0; turn < 4; ++turn) {
    shared[i] = turn;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += shared[63 - i];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  out[i] = sum;
}

// clean two_buffers --buffers zeros:float32:64 --threads 64 --group 64
kernel void two_buffers(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[2][64];
  float sum = 0;
  for (int turn = 0; turn < 5; ++turn) {
    shared[turn % 2][i] = turn;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += shared[turn % 2][63 - i];
  }
  out[i] = sum;
}

// finds two_buffers_once_too_few --buffers zeros:float32:64 --threads 64 --group 64
kernel void two_buffers_once_too_few(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[2][64];
  float sum = 0;
  for (int turn = 0; turn < 5; ++turn) {
    shared[turn / 2 % 2][i] = turn;  // race 1 write
    threadgroup_barrier(mem_flags::mem_threadgroup);
    sum += shared[turn / 2 % 2][63 - i];  // race 1 read
  }
  out[i] = sum;
}

// finds all_write --buffers zeros:float32:1 --threads 64 --group 64
kernel void all_write(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared;
  shared = i;  // race 1 write+write
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) out[0] = shared;
}

// Equal values do not make it right: Metal, as C++, leaves it undefined.
// finds all_write_the_same --buffers zeros:float32:1 --threads 64 --group 64
kernel void all_write_the_same(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared;
  shared = 1;  // race 1 write+write
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) out[0] = shared;
}

// finds write_after_read --buffers zeros:float32:64 --threads 64 --group 64
kernel void write_after_read(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[65];
  shared[i] = i;
  if (i == 0) shared[64] = 64;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float next = shared[i + 1];  // race 1 read
  shared[i] = next;            // race 1 write
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[i];
}

// clean broadcast --buffers zeros:float32:64 --threads 64 --group 64
kernel void broadcast(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared;
  if (i == 17) shared = 3;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared;
}

// finds broadcast_at_once --buffers zeros:float32:64 --threads 64 --group 64
kernel void broadcast_at_once(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared;
  if (i == 0) shared = 3;  // race 1 write
  out[i] = shared;         // race 1 read
}

// clean reduction --buffers zeros:float32:1 --threads 128 --group 128
kernel void reduction(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[128];
  shared[i] = i;
  for (uint half_size = 64; half_size > 0; half_size /= 2) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < half_size) shared[i] += shared[i + half_size];
  }
  if (i == 0) out[0] = shared[0];
}

// The last turns within one simdgroup "need no barrier": a habit from older GPUs.
// finds reduction_in_lockstep --buffers zeros:float32:1 --threads 128 --group 128
kernel void reduction_in_lockstep(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[128];
  shared[i] = i;
  for (uint half_size = 64; half_size > 0; half_size /= 2) {
    if (half_size > 16) threadgroup_barrier(mem_flags::mem_threadgroup);
    if (i < half_size) {
      float other = shared[i + half_size];  // race 1 read
      shared[i] += other;                   // race 1 write
    }
  }
  if (i == 0) out[0] = shared[0];
}

// clean reduction_of_simdgroup --buffers zeros:float32:1 --threads 128 --group 128
kernel void reduction_of_simdgroup(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[128];
  shared[i] = i;
  for (uint half_size = 64; half_size > 0; half_size /= 2) {
    if (half_size > 16)
      threadgroup_barrier(mem_flags::mem_threadgroup);
    else
      simdgroup_barrier(mem_flags::mem_threadgroup);
    if (i < half_size) shared[i] += shared[i + half_size];
  }
  if (i == 0) out[0] = shared[0];
}

// clean neighbouring_bytes --buffers zeros:uint8:64 --threads 64 --group 64
kernel void neighbouring_bytes(device uchar* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup uchar bytes[64];
  threadgroup half halves[64];
  bytes[i] = i;
  halves[i] = i;
  out[i] = bytes[i] + uchar(halves[i]);
}

// finds part_of_a_vector --buffers zeros:float32:64 --threads 64 --group 64
kernel void part_of_a_vector(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float4 shared[64];
  shared[i] = float4(i);      // race 1 write
  out[i] = shared[63 - i].w;  // race 1 read
}

// finds a_byte_of_a_word --buffers zeros:uint32:32 --threads 32 --group 32
kernel void a_byte_of_a_word(device uint* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup uint shared[8];
  threadgroup uchar* bytes = (threadgroup uchar*)shared;
  bytes[i] = i;            // race 1 write
  out[i] = shared[i / 4];  // race 1 read
}

struct Pair {
  float low;
  float high;
};

// clean members --buffers zeros:float32:64 --threads 64 --group 64
kernel void members(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup Pair shared[32];
  if (i < 32)
    shared[i].low = i;
  else
    shared[i - 32].high = i;
  out[i] = i < 32 ? shared[i].low : shared[i - 32].high;
}

// clean atomics --buffers zeros:uint32:1 --threads 64 --group 64
kernel void atomics(device uint* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup atomic_uint counter;
  if (i == 0) atomic_store_explicit(&counter, 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&counter, i, memory_order_relaxed);
  uint seen = atomic_load_explicit(&counter, memory_order_relaxed);
  uint expected = seen;
  atomic_compare_exchange_weak_explicit(&counter, &expected, seen, memory_order_relaxed,
                                        memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) out[0] = atomic_load_explicit(&counter, memory_order_relaxed);
}

// finds atomic_and_plain --buffers zeros:uint32:64 --threads 64 --group 64
kernel void atomic_and_plain(device uint* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup atomic_uint counter;
  if (i == 0) atomic_store_explicit(&counter, 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&counter, 1u, memory_order_relaxed);  // race 1 atomic
  out[i] = *(threadgroup uint*)&counter;                          // race 1 read
}

// finds plain_beside_atomic --buffers zeros:uint32:1 --threads 64 --group 64
kernel void plain_beside_atomic(device uint* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup atomic_uint counter;
  if (i == 0) *(threadgroup uint*)&counter = 0;                   // race 1 write
  atomic_fetch_add_explicit(&counter, 1u, memory_order_relaxed);  // race 1 atomic
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) out[0] = atomic_load_explicit(&counter, memory_order_relaxed);
}

// finds transposed_by_one_simdgroup --buffers zeros:float32:64 --threads 32 --group 32
kernel void transposed_by_one_simdgroup(device float* out) {
  threadgroup float shared[64];
  simdgroup_float8x8 tile = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_store(tile, shared, 8);                     // race 1 write
  simdgroup_load(tile, shared, 8, ulong2(0, 0), true);  // race 1 read
  simdgroup_store(tile, out, 8);
}

// clean transposed_after_a_barrier --buffers zeros:float32:64 --threads 32 --group 32
kernel void transposed_after_a_barrier(device float* out) {
  threadgroup float shared[64];
  simdgroup_float8x8 tile = make_filled_simdgroup_matrix<float, 8, 8>(1.0f);
  simdgroup_store(tile, shared, 8);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_load(tile, shared, 8, ulong2(0, 0), true);
  simdgroup_store(tile, out, 8);
}

// finds tile_of_another_simdgroup --buffers zeros:float32:128 --threads 64 --group 64
kernel void tile_of_another_simdgroup(device float* out,
                                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup float shared[2][64];
  simdgroup_float8x8 tile = make_filled_simdgroup_matrix<float, 8, 8>(float(simdgroup));
  simdgroup_store(tile, shared[simdgroup], 8);  // race 1 write
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_load(tile, shared[1 - simdgroup], 8);  // race 1 read
  simdgroup_store(tile, out + 64 * simdgroup, 8);
}

// finds in_a_function --buffers zeros:float32:64 --threads 64 --group 64
static float exchange(threadgroup float* shared, float value, uint i) {
  shared[i] = value;      // race 1 write
  return shared[63 - i];  // race 1 read
}
kernel void in_a_function(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  out[i] = exchange(shared, i, i);
}

// clean wait_in_a_function --buffers zeros:float32:64 --threads 64 --group 64
static void wait() { threadgroup_barrier(mem_flags::mem_threadgroup); }
kernel void wait_in_a_function(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;
  wait();
  out[i] = shared[63 - i];
}

// finds barrier_by_argument --buffers zeros:float32:64 0 --threads 64 --group 64
// clean barrier_by_argument --buffers zeros:float32:64 1 --threads 64 --group 64
kernel void barrier_by_argument(device float* out, constant int& wanted,
                                uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = i;  // race 1 write
  if (wanted) threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[63 - i];  // race 1 read
}

// The last threadgroup may be the only one in which two threads meet.
// finds in_the_last_threadgroup --buffers zeros:float32:192 --threads 192 --group 64
kernel void in_the_last_threadgroup(device float* out, uint i [[thread_position_in_threadgroup]],
                                    uint group [[threadgroup_position_in_grid]]) {
  threadgroup float shared[64];
  shared[i] = i;                                                // race 1 write
  out[64 * group + i] = shared[group == 2 && i == 9 ? 40 : i];  // race 1 read
}

// Threadgroups have memory of their own, even if it is the same memory one after the other.
// clean threadgroups_one_after_the_other --buffers zeros:float32:256 --threads 256 --group 64
kernel void threadgroups_one_after_the_other(device float* out,
                                             uint i [[thread_position_in_threadgroup]],
                                             uint at [[thread_position_in_grid]]) {
  threadgroup float shared[64];
  shared[63 - i] = i;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[at] = shared[i];
}
