// Simdgroups: exact for shuffles and integers; the order of a sum of floats, and the rounding
// inside the matrix unit, are the GPU's own.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

static float scattered(uint i) {
  return as_type<float>(0x3F800000u | (i * 0x9E3779B9u) >> 9) - 1.5f;
}

// run shuffles --buffers zeros:int32:32x6 --threads 32 --group 32
kernel void shuffles(device int* out, uint lane [[thread_index_in_simdgroup]]) {
  const int value = 3 * lane + 1;
  device int* own = out + 6 * lane;
  own[0] = simd_shuffle_xor(value, 5);
  own[1] = simd_shuffle(value, ushort(31 - lane));
  own[2] = simd_broadcast(value, 7);
  own[3] = simd_prefix_inclusive_sum(value);
  own[4] = simd_prefix_exclusive_product(value & 3 | 1);
  own[5] = quad_shuffle_xor(value, 1);
}

// run reductions --buffers zeros:float:256x4 --threads 256 --group 64
kernel void reductions(device float* out, uint i [[thread_position_in_grid]]) {
  const float value = scattered(i) * exp2(float(i % 13));
  out[4 * i + 0] = simd_sum(value);
  out[4 * i + 1] = simd_product(scattered(i) + 1.5f);
  out[4 * i + 2] = simd_max(value);
  out[4 * i + 3] = simd_prefix_inclusive_sum(value);
}

// run matrix_of_halves --buffers zeros:float:64 zeros:half:64 --threads 32 --group 32
kernel void matrix_of_halves(device float* wide, device half* narrow,
                             uint lane [[thread_index_in_simdgroup]]) {
  threadgroup half left[64], right[64];
  for (uint i = lane; i < 64; i += 32) {
    left[i] = half(scattered(i) * exp2(float(i % 8)));
    right[i] = half(scattered(i + 64));
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_half8x8 a, b;
  simdgroup_load(a, left, 8);
  simdgroup_load(b, right, 8);
  simdgroup_float8x8 sum = make_filled_simdgroup_matrix<float, 8, 8>(0.1f);
  simdgroup_multiply_accumulate(sum, a, b, sum);
  simdgroup_store(sum, wide, 8);
  simdgroup_half8x8 half_sum = make_filled_simdgroup_matrix<half, 8, 8>(0.1h);
  simdgroup_multiply_accumulate(half_sum, a, b, half_sum);
  simdgroup_store(half_sum, narrow, 8);
}

// run matrix_of_floats --buffers zeros:float:64 --threads 32 --group 32
kernel void matrix_of_floats(device float* out, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float left[64], right[64];
  for (uint i = lane; i < 64; i += 32) {
    left[i] = scattered(i) * exp2(float(i % 24));
    right[i] = scattered(i + 64);
  }
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 a, b, product;
  simdgroup_load(a, left, 8);
  simdgroup_load(b, right, 8);
  simdgroup_multiply(product, a, b);
  simdgroup_store(product, out, 8);
}

// run matrix_layout --buffers zeros:float:64 --threads 32 --group 32
kernel void matrix_layout(device float* out, uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float numbers[64];
  numbers[lane] = lane;
  numbers[lane + 32] = lane + 32;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 tile;
  simdgroup_load(tile, numbers, 8);
  out[2 * lane + 0] = tile.thread_elements()[0];
  out[2 * lane + 1] = tile.thread_elements()[1];
}
