// What the machine's parts cost: each kernel repeats one operation `count` times a thread.
#include <metal_stdlib>
using namespace metal;

kernel void barriers(device uint* out [[buffer(0)]], constant uint& count [[buffer(1)]],
                     uint index [[thread_position_in_grid]]) {
  for (uint i = 0; i < count; ++i) simdgroup_barrier(mem_flags::mem_none);
  out[index] = count;
}

kernel void group_barriers(device uint* out [[buffer(0)]], constant uint& count [[buffer(1)]],
                           uint index [[thread_position_in_grid]]) {
  for (uint i = 0; i < count; ++i) threadgroup_barrier(mem_flags::mem_threadgroup);
  out[index] = count;
}

kernel void sums(device float* out [[buffer(0)]], constant uint& count [[buffer(1)]],
                 uint index [[thread_position_in_grid]]) {
  float value = float(index);
  for (uint i = 0; i < count; ++i) value = simd_sum(value) * 0.03125f;
  out[index] = value;
}

kernel void shuffles(device float* out [[buffer(0)]], constant uint& count [[buffer(1)]],
                     uint index [[thread_position_in_grid]]) {
  float value = float(index);
  for (uint i = 0; i < count; ++i) value = simd_shuffle_xor(value, ushort(i & 31));
  out[index] = value;
}

kernel void multiplies(device float* out [[buffer(0)]], constant uint& count [[buffer(1)]],
                       uint index [[thread_position_in_grid]]) {
  simdgroup_half8x8 a = make_filled_simdgroup_matrix<half, 8, 8>(half(0.001f));
  simdgroup_half8x8 b = make_filled_simdgroup_matrix<half, 8, 8>(half(0.5f));
  simdgroup_float8x8 c = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  for (uint i = 0; i < count; ++i) simdgroup_multiply_accumulate(c, a, b, c);
  out[index] = c.thread_elements()[0];
}

kernel void launches(device uint* out [[buffer(0)]], constant uint& count [[buffer(1)]],
                     uint index [[thread_position_in_grid]]) {
  out[index] = count;
}

// One head of attention a threadgroup row: 32 queries in 4 simdgroups, blocks of 32 keys, D = 64,
// lengths multiples of 32. Scores and probabilities stay in registers; K and V pass through
// threadgroup memory.
kernel void attention(device const half* q [[buffer(0)]], device const half* k [[buffer(1)]],
                      device const half* v [[buffer(2)]], device half* o [[buffer(3)]],
                      constant uint& length [[buffer(4)]], constant float& scale_log2 [[buffer(5)]],
                      uint2 group [[threadgroup_position_in_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]],
                      uint lane [[thread_index_in_simdgroup]]) {
  constexpr uint D = 64, tiles_d = D / 8, block = 32, tiles_k = block / 8, leading = D + 8;
  threadgroup half keys[block * leading], values[block * leading];
  const uint row = (lane / 4 & 4) + lane / 2 % 4, column = (lane / 4 & 2) * 2 + lane % 2 * 2;
  const ulong head = ulong(group.y) * length * D;
  const ulong query = head + ulong(group.x * 32 + simdgroup * 8) * D;
  simdgroup_half8x8 q_tiles[tiles_d];
  simdgroup_float8x8 o_tiles[tiles_d];
  for (uint d = 0; d < tiles_d; ++d) {
    simdgroup_load(q_tiles[d], q + query + d * 8, D);
    o_tiles[d] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  }
  float row_max = -INFINITY, row_sum = 0.0f;
  for (uint start = 0; start < length; start += block) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (uint e = index * 4; e < block * D; e += 512) {
      const uint target = e / D * leading + e % D;
      *(threadgroup half4*)(keys + target) = *(device const half4*)(k + head + start * D + e);
      *(threadgroup half4*)(values + target) = *(device const half4*)(v + head + start * D + e);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    simdgroup_float8x8 s[tiles_k];
    for (uint j = 0; j < tiles_k; ++j) {
      s[j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
      for (uint d = 0; d < tiles_d; ++d) {
        simdgroup_half8x8 k_tile;
        simdgroup_load(k_tile, keys + j * 8 * leading + d * 8, leading, ulong2(0), true);
        simdgroup_multiply_accumulate(s[j], q_tiles[d], k_tile, s[j]);
      }
    }
    float highest = row_max;
    for (uint j = 0; j < tiles_k; ++j)
      highest = max3(highest, s[j].thread_elements()[0] * scale_log2,
                     s[j].thread_elements()[1] * scale_log2);
    highest = max(highest, simd_shuffle_xor(highest, ushort(1)));
    highest = max(highest, simd_shuffle_xor(highest, ushort(8)));
    const float correction = fast::exp2(row_max - highest);
    float sum = 0.0f;
    simdgroup_half8x8 p[tiles_k];
    for (uint j = 0; j < tiles_k; ++j) {
      for (uint e = 0; e < 2; ++e) {
        const float x = fast::exp2(s[j].thread_elements()[e] * scale_log2 - highest);
        p[j].thread_elements()[e] = half(x);
        sum += x;
      }
    }
    sum += simd_shuffle_xor(sum, ushort(1));
    sum += simd_shuffle_xor(sum, ushort(8));
    row_sum = row_sum * correction + sum;
    row_max = highest;
    for (uint d = 0; d < tiles_d; ++d) {
      o_tiles[d].thread_elements() *= correction;
      for (uint j = 0; j < tiles_k; ++j) {
        simdgroup_half8x8 v_tile;
        simdgroup_load(v_tile, values + j * 8 * leading + d * 8, leading);
        simdgroup_multiply_accumulate(o_tiles[d], p[j], v_tile, o_tiles[d]);
      }
    }
  }
  device half* target = o + query + row * D + column;
  for (uint d = 0; d < tiles_d; ++d) {
    target[d * 8] = half(o_tiles[d].thread_elements()[0] / row_sum);
    target[d * 8 + 1] = half(o_tiles[d].thread_elements()[1] / row_sum);
  }
}
