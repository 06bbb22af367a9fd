// Transpose through a 32x32 tile of threadgroup memory, so that both the loads and the stores of a
// simdgroup touch consecutive addresses. Rows are padded by one element: a column of the tile then
// lies in 32 different banks. Launch with groups of 32x8 threads, one group a tile.
#include <metal_stdlib>
using namespace metal;

constant constexpr uint tile_size = 32;

kernel void transpose(const device float* input [[buffer(0)]], device float* output [[buffer(1)]],
                      constant uint2& size [[buffer(2)]],  // columns, rows of the input
                      uint2 group [[threadgroup_position_in_grid]],
                      uint2 thread_position [[thread_position_in_threadgroup]],
                      uint2 group_size [[threads_per_threadgroup]]) {
  threadgroup float tile[tile_size][tile_size + 1];
  const uint2 origin = group * tile_size;
  for (uint y = thread_position.y; y < tile_size; y += group_size.y) {
    const uint2 from = origin + uint2(thread_position.x, y);
    if (all(from < size)) tile[y][thread_position.x] = input[ulong(from.y) * size.x + from.x];
  }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint y = thread_position.y; y < tile_size; y += group_size.y) {
    const uint2 to = origin.yx + uint2(thread_position.x, y);
    if (all(to < size.yx)) output[ulong(to.y) * size.y + to.x] = tile[thread_position.x][y];
  }
}
