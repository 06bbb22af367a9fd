// Races in device memory: within a threadgroup barriers order them, between threadgroups nothing
// does. How to read the marks: test_cases.py.
#include <metal_stdlib>
using namespace metal;

// finds no_barrier --buffers zeros:float32:64 zeros:float32:64 --threads 64
kernel void no_barrier(device float* x, device float* out,
                       uint i [[thread_position_in_threadgroup]]) {
  x[i] = i;            // race 1 write
  out[i] = x[63 - i];  // race 1 read
}

// clean barrier --buffers zeros:float32:64 zeros:float32:64 --threads 64
kernel void barrier(device float* x, device float* out, uint i [[thread_position_in_threadgroup]]) {
  x[i] = i;
  threadgroup_barrier(mem_flags::mem_device);
  out[i] = x[63 - i];
}

// finds wrong_flag --buffers zeros:float32:64 zeros:float32:64 --threads 64
kernel void wrong_flag(device float* x, device float* out,
                       uint i [[thread_position_in_threadgroup]]) {
  x[i] = i;  // race 1 write
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = x[63 - i];  // race 1 read
}

// One group of 128 threads meets at the barrier; two groups of 64 do not meet.
// clean one_group_or_two --buffers zeros:float32:128 zeros:float32:128 --threads 128 --group 128
// finds one_group_or_two --buffers zeros:float32:128 zeros:float32:128 --threads 128 --group 64
kernel void one_group_or_two(device float* x, device float* out,
                             uint i [[thread_position_in_grid]]) {
  x[i] = i;  // race 1 write
  threadgroup_barrier(mem_flags::mem_device);
  out[i] = x[127 - i];  // race 1 read
}

// finds shift_in_place --buffers ones:float32:65 --threads 64
// finds shift_in_place --buffers ones:float32:65 --threads 64 --group 1
kernel void shift_in_place(device float* x, uint i [[thread_position_in_grid]]) {
  float next = x[i + 1];  // race 1 read
  x[i] = next;            // race 1 write
}

// clean own_element --buffers ones:float32:256 --threads 256 --group 64
kernel void own_element(device float* x, uint i [[thread_position_in_grid]]) {
  x[i] = 2 * x[i] + 1;
}

// clean own_byte --buffers ones:uint8:256 --threads 256 --group 32
kernel void own_byte(device uchar* x, uint i [[thread_position_in_grid]]) { x[i] += 1; }

// clean shared_input --buffers ones:float32:4 zeros:float32:256 --threads 256 --group 64
kernel void shared_input(device const float* x, device float* out,
                         uint i [[thread_position_in_grid]]) {
  out[i] = x[0] + x[i % 4];
}

// finds last_writer --buffers zeros:uint32:1 --threads 2 --group 1
kernel void last_writer(device uint* x, uint i [[thread_position_in_grid]]) {
  x[0] = i;  // race 1 write+write
}

// finds flag --buffers zeros:uint32:1 --threads 128 --group 64
// clean flag --buffers zeros:uint32:1 --threads 4 --group 4
kernel void flag(device uint* found, uint i [[thread_position_in_grid]]) {
  if (i % 50 == 3) found[0] = 1;  // race 1 write+write
}

// finds histogram --buffers arange:uint8:128 zeros:uint32:16 --threads 128 --group 32
kernel void histogram(device const uchar* x, device uint* counts,
                      uint i [[thread_position_in_grid]]) {
  uint count = counts[x[i] % 16];  // race 1 read
  counts[x[i] % 16] = count + 1;   // race 1 write; race 2 write+write
}

// clean histogram_of_atomics --buffers arange:uint8:128 zeros:uint32:16 --threads 128 --group 32
kernel void histogram_of_atomics(device const uchar* x, device atomic_uint* counts,
                                 uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(&counts[x[i] % 16], 1u, memory_order_relaxed);
}

// finds result_of_atomics --buffers zeros:uint32:1 zeros:uint32:128 --threads 128 --group 64
kernel void result_of_atomics(device atomic_uint* count, device uint* out,
                              uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);  // race 1 atomic
  threadgroup_barrier(mem_flags::mem_device);
  out[i] = *(device uint*)count;  // race 1 read
}

// The threadgroup that comes last adds up what the others left. Relaxed atomics, which are all that
// Metal had before 3.2, do not make the others' plain writes visible to it.
// finds last_group --buffers zeros:float:4 zeros:uint32:1 zeros:float:1 --threads 128 --group 32
kernel void last_group(device float* partial, device atomic_uint* done, device float* out,
                       uint lane [[thread_index_in_simdgroup]],
                       uint group [[threadgroup_position_in_grid]]) {
  float sum = simd_sum(float(lane));
  if (lane != 0) return;
  partial[group] = sum;  // race 1 write
  if (atomic_fetch_add_explicit(done, 1u, memory_order_relaxed) == 3) {
    float total = 0;
    for (int i = 0; i < 4; ++i) total += partial[i];  // race 1 read
    out[0] = total;
  }
}

// finds wide_and_narrow --buffers zeros:uint8:64 --threads 16 --group 8
kernel void wide_and_narrow(device uchar* x, uint i [[thread_position_in_grid]]) {
  if (i < 8)
    x[i] = 1;  // race 1 write
  else
    ((device uint*)x)[i - 8] = 2;  // race 1 write
}

// finds halo --buffers ones:float32:64 --threads 64 --group 32
kernel void halo(device float* x, uint i [[thread_position_in_grid]],
                 uint lane [[thread_position_in_threadgroup]]) {
  float right = lane == 31 && i < 63 ? x[i + 1] : 0;  // race 1 read
  threadgroup_barrier(mem_flags::mem_device);
  x[i] = right;  // race 1 write
}

// The thread's own read of its atomic does not hide the atomic from the others.
// finds read_after_own_atomic --buffers zeros:uint32:1 zeros:uint32:2 --threads 2
kernel void read_after_own_atomic(device atomic_uint* count, device uint* out,
                                  uint i [[thread_position_in_grid]]) {
  if (i == 0) {
    atomic_fetch_add_explicit(count, 1u, memory_order_relaxed);  // race 1 atomic
    out[0] = *(device uint*)count;
  } else {
    out[1] = *(device uint*)count;  // race 1 read
  }
}
