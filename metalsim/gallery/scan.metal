// Inclusive prefix sum of any length: scan_groups scans the part of each threadgroup and keeps its
// total; after a scan of the totals by the same kernel, add_totals adds what lies before each part.
#include <metal_stdlib>
using namespace metal;

kernel void scan_groups(const device int* input [[buffer(0)]], device int* output [[buffer(1)]],
                        device int* totals [[buffer(2)]], uint index [[thread_position_in_grid]],
                        uint group [[threadgroup_position_in_grid]],
                        uint thread_index [[thread_index_in_threadgroup]],
                        uint group_size [[threads_per_threadgroup]],
                        uint simdgroup [[simdgroup_index_in_threadgroup]],
                        uint simdgroups [[simdgroups_per_threadgroup]],
                        uint lane [[thread_index_in_simdgroup]],
                        uint width [[threads_per_simdgroup]]) {
  threadgroup int before[32];
  int sum = simd_prefix_inclusive_sum(input[index]);
  const bool is_last = thread_index == group_size - 1;
  if (lane == width - 1 || is_last) before[simdgroup] = sum;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (simdgroup == 0) {
    const int total = lane < simdgroups ? before[lane] : 0;
    const int earlier = simd_prefix_exclusive_sum(total);
    if (lane < simdgroups) before[lane] = earlier;
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  sum += before[simdgroup];
  output[index] = sum;
  if (is_last) totals[group] = sum;
}

kernel void add_totals(device int* output [[buffer(0)]],
                       const device int* scanned_totals [[buffer(1)]],
                       uint index [[thread_position_in_grid]],
                       uint group [[threadgroup_position_in_grid]]) {
  if (group > 0) output[index] += scanned_totals[group - 1];
}
