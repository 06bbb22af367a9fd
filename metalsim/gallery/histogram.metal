// Histogram of bytes. Each threadgroup counts into threadgroup memory, where atomics are cheap, and
// adds its counts to those in device memory once at its end.
#include <metal_stdlib>
using namespace metal;

constant constexpr uint bins = 256;

kernel void histogram(const device uchar* values [[buffer(0)]],
                      device atomic_uint* counts [[buffer(1)]], constant uint& count [[buffer(2)]],
                      uint index [[thread_position_in_grid]], uint grid_size [[threads_per_grid]],
                      uint thread_index [[thread_index_in_threadgroup]],
                      uint group_size [[threads_per_threadgroup]]) {
  threadgroup atomic_uint local_counts[bins];
  for (uint bin = thread_index; bin < bins; bin += group_size)
    atomic_store_explicit(&local_counts[bin], 0, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = index; i < count; i += grid_size)
    atomic_fetch_add_explicit(&local_counts[values[i]], 1, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint bin = thread_index; bin < bins; bin += group_size) {
    const uint found = atomic_load_explicit(&local_counts[bin], memory_order_relaxed);
    if (found > 0) atomic_fetch_add_explicit(&counts[bin], found, memory_order_relaxed);
  }
}
