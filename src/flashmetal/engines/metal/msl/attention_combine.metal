// Sums the shares that the splits of a decode left of each row: their outputs, weighed by what
// their normalisers are of the whole. One simdgroup a row and head.
kernel void attention_combine(ATTENTION_BINDINGS, uint position [[threadgroup_position_in_grid]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint simdgroups [[simdgroups_per_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
  const Operands operands = ATTENTION_OPERANDS;
  const long index = long(position) * simdgroups + simdgroup;
  if (index >= params.rows_and_heads) return;

  float most = -INFINITY;
  for (int split = 0; split < params.splits; ++split)
    most = max(most, operands.partial_lse[split * params.rows_and_heads + index]);
  // A row that has seen no key weighs nothing, against whatever normaliser.
  const float reference = most == -INFINITY ? 0.0f : most;
  float total = 0.0f;
  for (int split = 0; split < params.splits; ++split)
    total += exp(operands.partial_lse[split * params.rows_and_heads + index] - reference);
  const float inverse = total == 0.0f ? 0.0f : 1.0f / total;

  for (int d = int(lane); d < HEAD_DIM_V; d += 32) {
    float sum = 0.0f;
    for (int split = 0; split < params.splits; ++split) {
      const long share = split * params.rows_and_heads + index;
      const float weight = exp(operands.partial_lse[share] - reference) * inverse;
      sum = fma(weight, operands.partial_o[share * HEAD_DIM_V + d], sum);
    }
    operands.o[index * HEAD_DIM_V + d] = Element(sum);
  }

  const long row = index / params.heads_q, head = index % params.heads_q;
  const long rows = params.lse_stride_head, batch = row / rows;
  if (lane == 0)
    operands.lse[batch * params.lse_stride_batch + head * rows + row % rows] =
        total == 0.0f ? -INFINITY : reference + log(total);
}
