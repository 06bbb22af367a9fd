// O = softmax(scale Q K^T) V with Metal 4's tensor operations, 16 rows of Q a simdgroup, with a
// running maximum and sum. Scores and sums stay in registers. Where the GPU's layouts allow it the
// scores are the next product's input as they are, elsewhere they go through threadgroup memory.
#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;

struct Sizes {
  int rows, keys;
  float scale_log2;  // of the scores, times log2(e)
};

constant constexpr int head_dim = 64;
constant constexpr int tile_rows = 16;
constant constexpr int block_keys = 32;
constant constexpr int simdgroups = 4;

kernel void tensor_attention(device half* q [[buffer(0)]], device half* k [[buffer(1)]],
                             device half* v [[buffer(2)]], device float* o [[buffer(3)]],
                             constant Sizes& sizes [[buffer(4)]],
                             uint group [[threadgroup_position_in_grid]],
                             uint simdgroup [[simdgroup_index_in_threadgroup]],
                             uint lane [[thread_index_in_simdgroup]]) {
  threadgroup float maxima[simdgroups][tile_rows], sums[simdgroups][tile_rows];
  threadgroup float corrections[simdgroups][tile_rows], block_values[simdgroups][tile_rows];
  threadgroup float stage[simdgroups][tile_rows * block_keys];
  const int first_row = (int(group) * simdgroups + int(simdgroup)) * tile_rows;
  if (first_row >= sizes.rows) return;  // a whole simdgroup, and each works alone

  auto all_k = tensor(k, dextents<int, 2>(head_dim, sizes.keys));
  auto all_v = tensor(v, dextents<int, 2>(head_dim, sizes.keys));
  auto tile_q = tensor(q, dextents<int, 2>(head_dim, sizes.rows)).slice(0, first_row);
  auto tile_o = tensor(o, dextents<int, 2>(head_dim, sizes.rows)).slice(0, first_row);
  auto staged = tensor(stage[simdgroup], extents<int, block_keys, tile_rows>());
  auto block_line = tensor(block_values[simdgroup], extents<int, tile_rows>());
  using Halves = decltype(tile_q);
  using Floats = decltype(staged);

  constexpr auto mode = matmul2d_descriptor::mode::multiply_accumulate;
  matmul2d<matmul2d_descriptor(tile_rows, block_keys, head_dim, false, true, false, mode),
           execution_simdgroup>
      score;
  matmul2d<matmul2d_descriptor(tile_rows, head_dim, block_keys, false, false, false, mode),
           execution_simdgroup>
      combine;
  auto s = score.get_destination_cooperative_tensor<Halves, Halves, float>();
  auto line = score.get_row_reduction_destination_cooperative_tensor<Halves, Halves, float>();
  auto out = combine.get_destination_cooperative_tensor<Floats, Halves, float>();
  for (uint16_t i = 0; i < out.get_capacity(); ++i) out[i] = 0;
  if (lane < tile_rows) {
    maxima[simdgroup][lane] = -INFINITY;
    sums[simdgroup][lane] = 0;
  }

  for (int key = 0; key < sizes.keys; key += block_keys) {
    auto block_k = all_k.slice(0, key), block_v = all_v.slice(0, key);
    for (uint16_t i = 0; i < s.get_capacity(); ++i) s[i] = 0;
    score.run(tile_q, block_k, s);
    for (uint16_t i = 0; i < s.get_capacity(); ++i)
      if (s.is_valid_element(i))
        s[i] = key + s.get_multidimensional_index(i)[0] < sizes.keys ? s[i] * sizes.scale_log2
                                                                     : -INFINITY;
    reduce_rows(s, line, reduction_operation::max, -INFINITY);
    line.store(block_line);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (lane < tile_rows) {
      const float before = maxima[simdgroup][lane];
      const float after = max(before, block_values[simdgroup][lane]);
      corrections[simdgroup][lane] = exp2(before - after);
      maxima[simdgroup][lane] = after;
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    for (uint16_t i = 0; i < s.get_capacity(); ++i)
      if (s.is_valid_element(i))
        s[i] = exp2(s[i] - maxima[simdgroup][s.get_multidimensional_index(i)[1]]);
    for (uint16_t i = 0; i < out.get_capacity(); ++i)
      if (out.is_valid_element(i))
        out[i] *= corrections[simdgroup][out.get_multidimensional_index(i)[1]];
    reduce_rows(s, line, reduction_operation::sum, 0.0f);
    line.store(block_line);
    if (combine.is_compatible_as_left_input<float, half, float>(s)) {
      auto p = combine.get_left_input_cooperative_tensor<float, half, float>(s);
      combine.run(p, block_v, out);
    } else {
      s.store(staged);
      simdgroup_barrier(mem_flags::mem_threadgroup);
      combine.run(staged, block_v, out);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    if (lane < tile_rows)
      sums[simdgroup][lane] =
          sums[simdgroup][lane] * corrections[simdgroup][lane] + block_values[simdgroup][lane];
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  for (uint16_t i = 0; i < out.get_capacity(); ++i)
    if (out.is_valid_element(i)) out[i] /= sums[simdgroup][out.get_multidimensional_index(i)[1]];
  out.store(tile_o);
}
