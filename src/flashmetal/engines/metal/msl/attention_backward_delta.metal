// delta[row] = sum over d of o * grad_o, less the gradient of lse: all that dS needs to know of a
// row beside P and dP. One simdgroup a row of one head; a packed batch is one long sequence here.
kernel void attention_backward_delta(ATTENTION_BINDINGS,
                                     uint3 position [[threadgroup_position_in_grid]],
                                     uint simdgroup [[simdgroup_index_in_threadgroup]],
                                     uint simdgroups [[simdgroups_per_threadgroup]],
                                     uint lane [[thread_index_in_simdgroup]]) {
  const Operands operands = ATTENTION_OPERANDS;
  const long row = long(position.x) * simdgroups + simdgroup;
  const long head = position.y, batch = position.z, rows = params.lse_stride_head;
  if (row >= rows) return;

  const device Element* o =
      operands.o + ((batch * rows + row) * params.heads_q + head) * HEAD_DIM_V;
  const device Element* grad_o = operands.grad_o + batch * params.grad_o_stride_batch +
                                 row * params.grad_o_stride_row + head * params.grad_o_stride_head;
  float sum = 0.0f;
  for (int d = int(lane); d < HEAD_DIM_V; d += 32) sum = fma(float(o[d]), float(grad_o[d]), sum);
  sum = simd_sum(sum);

  const long index = batch * params.lse_stride_batch + head * params.lse_stride_head + row;
  if (HAS_GRAD_LSE) sum -= operands.grad_lse[index];
  if (lane == 0) operands.delta[index] = sum;
}
