// y = A x, with a quad (four neighbouring threads) for each row: every thread takes each fourth
// element of the row, and quad_sum adds up the four sums without memory or barriers.
#include <metal_stdlib>
using namespace metal;

kernel void matrix_vector(const device float* matrix [[buffer(0)]],
                          const device float* x [[buffer(1)]], device float* y [[buffer(2)]],
                          constant uint& columns [[buffer(3)]],
                          uint index [[thread_position_in_grid]],
                          uint quad_lane [[thread_index_in_quadgroup]]) {
  const uint row = index / 4;
  const device float* from = matrix + ulong(row) * columns;
  float sum = 0;
  for (uint i = quad_lane; i < columns; i += 4) sum += from[i] * x[i];
  sum = quad_sum(sum);
  if (quad_lane == 0) y[row] = sum;
}
