// One step of heat flow on a 2-D field: the 5-point stencil on a tile with a border of one cell.
// Launched with exactly as many threads as cells, so that groups at the edges are smaller; cells
// outside of the field count as zero. Groups of up to 16x16 threads.
#include <metal_stdlib>
using namespace metal;

constant constexpr uint tile_size = 16;

float cell(const device float* field, int2 size, int2 at) {
  const bool is_inside = all(at >= 0) && all(at < size);
  return is_inside ? field[long(at.y) * size.x + at.x] : 0;
}

kernel void heat_step(const device float* field [[buffer(0)]], device float* next [[buffer(1)]],
                      constant float& rate [[buffer(2)]],
                      uint2 position [[thread_position_in_grid]],
                      uint2 grid_size [[threads_per_grid]],
                      uint2 thread_position [[thread_position_in_threadgroup]],
                      uint2 group_size [[threads_per_threadgroup]]) {
  threadgroup float tile[tile_size + 2][tile_size + 2];
  const int2 at = int2(position), size = int2(grid_size);
  const uint x = thread_position.x + 1, y = thread_position.y + 1;
  const float center = cell(field, size, at);
  tile[y][x] = center;
  if (x == 1) tile[y][0] = cell(field, size, at - int2(1, 0));
  if (x == group_size.x) tile[y][x + 1] = cell(field, size, at + int2(1, 0));
  if (y == 1) tile[0][x] = cell(field, size, at - int2(0, 1));
  if (y == group_size.y) tile[y + 1][x] = cell(field, size, at + int2(0, 1));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float around = tile[y][x - 1] + tile[y][x + 1] + tile[y - 1][x] + tile[y + 1][x];
  next[ulong(position.y) * grid_size.x + position.x] = center + rate * (around - 4 * center);
}
