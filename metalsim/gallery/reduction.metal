// Sum of an array, in two steps of the same kernel: each threadgroup adds up one part with simd_sum
// and threadgroup memory; a second launch with a single threadgroup adds up the parts.
#include <metal_stdlib>
using namespace metal;

kernel void reduce_sum(const device float* input [[buffer(0)]], device float* sums [[buffer(1)]],
                       constant uint& count [[buffer(2)]], uint index [[thread_position_in_grid]],
                       uint grid_size [[threads_per_grid]],
                       uint group [[threadgroup_position_in_grid]],
                       uint simdgroup [[simdgroup_index_in_threadgroup]],
                       uint simdgroups [[simdgroups_per_threadgroup]],
                       uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float partial[32];
  float sum = 0;
  for (uint i = index; i < count; i += grid_size) sum += input[i];
  sum = simd_sum(sum);
  if (lane == 0) partial[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 0) {
    sum = simd_sum(lane < simdgroups ? partial[lane] : 0);
    if (lane == 0) sums[group] = sum;
  }
}
