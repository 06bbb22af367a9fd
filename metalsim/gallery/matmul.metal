// C = A B in half precision with float sums, on 8x8 matrices of a simdgroup. A threadgroup of 128
// threads computes a 32x32 tile of C, each of its 4 simdgroups a 16x16 quarter; blocks of A and B
// pass through threadgroup memory, where what lies outside of the matrices is zero.
#include <metal_stdlib>
using namespace metal;

struct Sizes {
  uint rows, columns, depth;  // C is rows x columns, A rows x depth, B depth x columns
};

constant constexpr uint tile_size = 32;
constant constexpr uint block_depth = 16;
constant constexpr uint group_threads = 128;

template <uint rows, uint columns>
void load_block(const device half* matrix, uint2 size, uint2 origin, threadgroup half* block,
                uint thread_index) {
  for (uint i = thread_index; i < rows * columns; i += group_threads) {
    const uint2 at = origin + uint2(i % columns, i / columns);
    block[i] = all(at < size) ? matrix[ulong(at.y) * size.x + at.x] : half(0);
  }
}

kernel void matmul(const device half* a [[buffer(0)]], const device half* b [[buffer(1)]],
                   device float* c [[buffer(2)]], constant Sizes& sizes [[buffer(3)]],
                   uint2 group [[threadgroup_position_in_grid]],
                   uint thread_index [[thread_index_in_threadgroup]],
                   uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup half a_block[tile_size * block_depth], b_block[block_depth * tile_size];
  threadgroup float c_tile[tile_size * tile_size];
  const uint2 origin = group * tile_size;
  const uint2 quarter = uint2(simdgroup % 2, simdgroup / 2) * 16;

  simdgroup_float8x8 sums[2][2];
  for (uint row = 0; row < 2; ++row)
    for (uint column = 0; column < 2; ++column)
      sums[row][column] = make_filled_simdgroup_matrix<float, 8, 8>(0);

  for (uint depth = 0; depth < sizes.depth; depth += block_depth) {
    load_block<tile_size, block_depth>(a, uint2(sizes.depth, sizes.rows), uint2(depth, origin.y),
                                       a_block, thread_index);
    load_block<block_depth, tile_size>(b, uint2(sizes.columns, sizes.depth), uint2(origin.x, depth),
                                       b_block, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint k = 0; k < block_depth; k += 8) {
      simdgroup_half8x8 a_tiles[2], b_tiles[2];
      for (uint i = 0; i < 2; ++i) {
        simdgroup_load(a_tiles[i], a_block, block_depth, ulong2(k, quarter.y + 8 * i));
        simdgroup_load(b_tiles[i], b_block, tile_size, ulong2(quarter.x + 8 * i, k));
      }
      for (uint row = 0; row < 2; ++row)
        for (uint column = 0; column < 2; ++column)
          simdgroup_multiply_accumulate(sums[row][column], a_tiles[row], b_tiles[column],
                                        sums[row][column]);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  for (uint row = 0; row < 2; ++row)
    for (uint column = 0; column < 2; ++column)
      simdgroup_store(sums[row][column], c_tile, tile_size,
                      ulong2(quarter.x + 8 * column, quarter.y + 8 * row));
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint i = thread_index; i < tile_size * tile_size; i += group_threads) {
    const uint2 at = origin + uint2(i % tile_size, i / tile_size);
    if (all(at < uint2(sizes.columns, sizes.rows)))
      c[ulong(at.y) * sizes.columns + at.x] = c_tile[i];
  }
}
