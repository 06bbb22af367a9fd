// Sorts each run of 256 elements, one threadgroup a run and one thread an element. Partners less
// than 32 apart exchange through simd_shuffle_xor, without a barrier; the rest through threadgroup
// memory.
#include <metal_stdlib>
using namespace metal;

constant constexpr uint run_length = 256;

kernel void bitonic_sort(device int* values [[buffer(0)]], uint index [[thread_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint width [[threads_per_simdgroup]]) {
  threadgroup int exchange[run_length];
  int value = values[index];
  for (uint sorted = 2; sorted <= run_length; sorted *= 2) {
    for (uint distance = sorted / 2; distance > 0; distance /= 2) {
      int partner;
      if (distance < width) {
        partner = simd_shuffle_xor(value, ushort(distance));
      } else {
        exchange[thread_index] = value;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        partner = exchange[thread_index ^ distance];
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
      const bool is_ascending = (thread_index & sorted) == 0;
      const bool is_lower = (thread_index & distance) == 0;
      value = is_ascending == is_lower ? min(value, partner) : max(value, partner);
    }
  }
  values[index] = value;
}
