// Softmax of each row of a matrix, one threadgroup a row, rows of any length. One pass finds the
// maximum and the sum together: a sum is rescaled whenever its maximum grows.
#include <metal_stdlib>
using namespace metal;

kernel void softmax_rows(const device float* input [[buffer(0)]],
                         device float* output [[buffer(1)]], constant uint& columns [[buffer(2)]],
                         uint row [[threadgroup_position_in_grid]],
                         uint thread_index [[thread_index_in_threadgroup]],
                         uint group_size [[threads_per_threadgroup]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float maxima[32], sums[32];
  const device float* from = input + ulong(row) * columns;
  device float* to = output + ulong(row) * columns;

  float maximum = -FLT_MAX, sum = 0;
  for (uint i = thread_index; i < columns; i += group_size) {
    const float larger = max(maximum, from[i]);
    sum = sum * exp(maximum - larger) + exp(from[i] - larger);
    maximum = larger;
  }
  const float simdgroup_maximum = simd_max(maximum);
  sum = simd_sum(sum * exp(maximum - simdgroup_maximum));
  if (lane == 0) {
    maxima[simdgroup] = simdgroup_maximum;
    sums[simdgroup] = sum;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);

  const bool is_used = lane < simdgroups;
  const float row_maximum = simd_max(is_used ? maxima[lane] : -FLT_MAX);
  const float row_sum = simd_sum(is_used ? sums[lane] * exp(maxima[lane] - row_maximum) : 0);
  for (uint i = thread_index; i < columns; i += group_size)
    to[i] = exp(from[i] - row_maximum) / row_sum;
}
