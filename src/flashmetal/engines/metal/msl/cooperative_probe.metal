// What lane holds which element of the cooperative tensors of tile_tensor_ops.h.

using namespace mpp::tensor_ops;

constant constexpr int SLOTS = 16;

// One lane's share of a tensor: its capacity, then row * 32 + column of each slot, -1 if empty.
template <typename Tensor>
inline void tell(const thread Tensor& tensor, device int* shares, uint lane_index) {
  device int* share = shares + int(lane_index) * (SLOTS + 1);
  share[0] = tensor.get_capacity();
  for (ushort slot = 0; slot < SLOTS; ++slot) {
    int place = -1;
    if (slot < tensor.get_capacity() && tensor.is_valid_element(slot)) {
      const auto index = tensor.get_multidimensional_index(slot);
      place = index[1] * 32 + index[0];
    }
    share[1 + slot] = place;
  }
}

template <bool TRANSPOSED>
inline void tell_all(device int* shares, uint lane_index) {
  constexpr auto descriptor = matmul2d_descriptor(16, 32, 16, false, TRANSPOSED, RELAXED,
                                                  matmul2d_descriptor::mode::multiply_accumulate);
  matmul2d<descriptor, execution_simdgroup> product;
  auto a = product.template get_left_input_cooperative_tensor<Element, Element, float>();
  auto b = product.template get_right_input_cooperative_tensor<Element, Element, float>();
  auto c = product.template get_destination_cooperative_tensor<decltype(a), decltype(b), float>();
  constexpr int TENSOR = 32 * (SLOTS + 1);
  tell(a, shares, lane_index);
  tell(b, shares + TENSOR, lane_index);
  tell(c, shares + 2 * TENSOR, lane_index);
}

[[kernel]] void cooperative_probe(device int* shares [[buffer(0)]],  // [2][3][32][SLOTS + 1]
                                  uint lane_index [[thread_index_in_simdgroup]]) {
  tell_all<false>(shares, lane_index);
  tell_all<true>(shares + 3 * 32 * (SLOTS + 1), lane_index);
}
