// C = max(A B + bias, 0) with Metal 4's tensor operations. The four simdgroups of a threadgroup
// multiply a 64x32 tile together and keep it in registers, where the bias is added: which thread
// holds which element differs between GPUs, so each asks for the place of its own.
#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;

struct Sizes {
  int rows, columns, depth;  // C is rows x columns, A rows x depth, B depth x columns
};

constant constexpr int tile_rows = 64;
constant constexpr int tile_columns = 32;

kernel void tensor_matmul(device half* a [[buffer(0)]], device half* b [[buffer(1)]],
                          const device float* bias [[buffer(2)]], device float* c [[buffer(3)]],
                          constant Sizes& sizes [[buffer(4)]],
                          uint2 group [[threadgroup_position_in_grid]]) {
  // Extents and positions are (column, row); what lies outside of the extents counts as 0.
  auto all_a = tensor(a, dextents<int, 2>(sizes.depth, sizes.rows));
  auto all_b = tensor(b, dextents<int, 2>(sizes.columns, sizes.depth));
  auto all_c = tensor(c, dextents<int, 2>(sizes.columns, sizes.rows));
  const int first_row = int(group.y) * tile_rows, first_column = int(group.x) * tile_columns;
  auto tile_a = all_a.slice(0, first_row);
  auto tile_b = all_b.slice(first_column, 0);
  auto tile_c = all_c.slice(first_column, first_row);

  // The depth is dynamic: the operation goes through all of it.
  constexpr auto descriptor =
      matmul2d_descriptor(tile_rows, tile_columns, int(dynamic_extent), false, false, false,
                          matmul2d_descriptor::mode::multiply_accumulate);
  matmul2d<descriptor, execution_simdgroups<4>> multiply;
  auto sums =
      multiply.get_destination_cooperative_tensor<decltype(tile_a), decltype(tile_b), float>();
  for (uint16_t i = 0; i < sums.get_capacity(); ++i)
    if (sums.is_valid_element(i)) sums[i] = 0;
  multiply.run(tile_a, tile_b, sums);

  for (uint16_t i = 0; i < sums.get_capacity(); ++i) {
    if (!sums.is_valid_element(i)) continue;
    const int column = first_column + sums.get_multidimensional_index(i)[0];
    if (column < sizes.columns) sums[i] = max(sums[i] + bias[column], 0.0f);
  }
  sums.store(tile_c);
}
