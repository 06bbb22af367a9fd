// Fences: what atomic operations carry from one thread to another. How to read the marks:
// test_cases.py.
#include <metal_stdlib>
using namespace metal;

// The threadgroup that counts last adds up what all of them left. The numbers are the memory orders
// of the two fences (0 relaxed, 2 acquire, 3 release, 5 both), then memory and scope of both.
// clean last_adds_up --buffers zeros:float32:5 zeros:uint32:1 3 2 1 3 --threads 8 --group 2
// clean last_adds_up --buffers zeros:float32:5 zeros:uint32:1 5 5 3 3 --threads 8 --group 2
// finds last_adds_up --buffers zeros:float32:5 zeros:uint32:1 0 2 1 3 --threads 8 --group 2
// finds last_adds_up --buffers zeros:float32:5 zeros:uint32:1 3 0 1 3 --threads 8 --group 2
// finds last_adds_up --buffers zeros:float32:5 zeros:uint32:1 2 3 1 3 --threads 8 --group 2
// finds last_adds_up --buffers zeros:float32:5 zeros:uint32:1 3 2 2 3 --threads 8 --group 2
// finds last_adds_up --buffers zeros:float32:5 zeros:uint32:1 3 2 1 2 --threads 8 --group 2
kernel void last_adds_up(device float* x, device atomic_uint* count, constant int& release,
                         constant int& acquire, constant int& memory, constant int& scope,
                         uint i [[thread_position_in_threadgroup]],
                         uint group [[threadgroup_position_in_grid]],
                         uint groups [[threadgroups_per_grid]]) {
  if (i > 0) return;
  x[group] = group;  // race 1 write
  atomic_thread_fence(mem_flags(memory), memory_order(release), thread_scope(scope));
  if (atomic_fetch_add_explicit(count, 1u, memory_order_relaxed) < groups - 1) return;
  atomic_thread_fence(mem_flags(memory), memory_order(acquire), thread_scope(scope));
  float sum = 0;
  for (uint at = 0; at < groups; ++at) sum += x[at];  // race 1 read
  x[groups] = sum;
}

// The fence is one thread's: a barrier must bring the others' work to it, and the news to them.
// clean all_add_up --buffers zeros:float32:128 zeros:uint32:1 1 --threads 128 --group 32
// finds all_add_up --buffers zeros:float32:128 zeros:uint32:1 0 --threads 128 --group 32
kernel void all_add_up(device float* x, device atomic_uint* count, constant int& memory,
                       uint i [[thread_position_in_threadgroup]],
                       uint at [[thread_position_in_grid]], uint groups [[threadgroups_per_grid]]) {
  threadgroup bool is_last;
  x[at] = i;  // race 1 write
  threadgroup_barrier(mem_flags(memory));
  if (i == 0) {
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
    is_last = atomic_fetch_add_explicit(count, 1u, memory_order_relaxed) == groups - 1;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
  if (!is_last) return;
  float sum = 0;
  for (uint other = 0; other < groups; ++other) sum += x[other * 32 + i];  // race 1 read
  x[at] = sum;
}

// finds written_behind_the_fence --buffers zeros:float32:4 zeros:uint32:1 --threads 4 --group 1
kernel void written_behind_the_fence(device float* x, device atomic_uint* count,
                                     uint group [[threadgroup_position_in_grid]]) {
  atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
  x[group] = group;  // race 1 write
  if (atomic_fetch_add_explicit(count, 1u, memory_order_relaxed) < 3) return;
  atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
  x[group] = x[0] + x[1] + x[2] + x[3];  // race 1 read
}

// finds another_counter --buffers zeros:float32:1 zeros:uint32:2 --threads 2 --group 1
kernel void another_counter(device float* x, device atomic_uint* counts,
                            uint group [[threadgroup_position_in_grid]]) {
  atomic_fetch_add_explicit(counts + group, 1u, memory_order_relaxed);
  atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
  x[0] += 1;  // race 1 read+write; race 2 write+write
  atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
  atomic_fetch_add_explicit(counts + group, 1u, memory_order_relaxed);
}

// A lock hands on what all its holders did before.
// clean lock --buffers zeros:float32:9 zeros:uint32:1 2 --threads 8 --group 1
// finds lock --buffers zeros:float32:9 zeros:uint32:1 0 --threads 8 --group 1
kernel void lock(device float* x, device atomic_uint* taken, constant int& acquire,
                 uint group [[threadgroup_position_in_grid]]) {
  uint is_free = 0;
  while (!atomic_compare_exchange_weak_explicit(taken, &is_free, 1u, memory_order_relaxed,
                                                memory_order_relaxed))
    is_free = 0;
  atomic_thread_fence(mem_flags::mem_device, memory_order(acquire));
  x[8] = group;  // race 1 write+write
  atomic_thread_fence(mem_flags::mem_device, memory_order_release);
  atomic_store_explicit(taken, 0u, memory_order_relaxed);
}

// What the first holder wrote reaches the third by the second.
// clean lock_of_three --buffers zeros:float32:4 zeros:uint32:1 --threads 3 --group 1
kernel void lock_of_three(device float* x, device atomic_uint* taken,
                          uint group [[threadgroup_position_in_grid]]) {
  uint is_free = 0;
  while (!atomic_compare_exchange_weak_explicit(taken, &is_free, 1u, memory_order_relaxed,
                                                memory_order_relaxed))
    is_free = 0;
  atomic_thread_fence(mem_flags::mem_device, memory_order_acquire);
  x[group] = 1;
  x[3] = x[0] + x[1] + x[2];
  atomic_thread_fence(mem_flags::mem_device, memory_order_release);
  atomic_store_explicit(taken, 0u, memory_order_relaxed);
}

// A store says nothing of what the counter held: those who counted before are not heard.
// finds store_in_between --buffers zeros:float32:2 zeros:uint32:1 --threads 3 --group 3
kernel void store_in_between(device float* x, device atomic_uint* flag,
                             uint i [[thread_position_in_threadgroup]]) {
  if (i == 0) {
    x[0] = 1;  // race 1 write
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
    atomic_store_explicit(flag, 1u, memory_order_relaxed);
  }
  simdgroup_barrier(mem_flags::mem_none);
  if (i == 1) atomic_store_explicit(flag, 2u, memory_order_relaxed);
  simdgroup_barrier(mem_flags::mem_none);
  if (i == 2 && atomic_load_explicit(flag, memory_order_relaxed) == 2) {
    atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst);
    x[1] = x[0];  // race 1 read
  }
}
