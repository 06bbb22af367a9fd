// The shape of MLX's and torch's attention kernels for M5: 16x32x16, all operands in registers.
#include <metal_stdlib>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;

kernel void tensor_multiplies(device float* out, constant uint& count,
                              uint lane [[thread_index_in_simdgroup]]) {
  constexpr auto descriptor = matmul2d_descriptor(16, 32, 16, false, true, false,
                                                  matmul2d_descriptor::mode::multiply_accumulate);
  matmul2d<descriptor, execution_simdgroup> multiply;
  auto left = multiply.get_left_input_cooperative_tensor<half, half, float>();
  auto right = multiply.get_right_input_cooperative_tensor<half, half, float>();
  auto sums = multiply.get_destination_cooperative_tensor<decltype(left), decltype(right), float>();
  for (uint16_t i = 0; i < left.get_capacity(); ++i) left[i] = half(out[lane]);
  for (uint16_t i = 0; i < right.get_capacity(); ++i) right[i] = half(out[lane]);
  for (uint16_t i = 0; i < sums.get_capacity(); ++i) sums[i] = 0;
  for (uint i = 0; i < count; ++i) multiply.run(left, right, sums);
  out[lane] = sums[0];
}
