// Sums the shares that the splits of a decode left of each row: their outputs, weighed by what
// their normalisers are of the whole. One simdgroup a row and head, at most 32 splits.
kernel void attention_combine(ATTENTION_BINDINGS, uint position [[threadgroup_position_in_grid]],
                              uint simdgroup [[simdgroup_index_in_threadgroup]],
                              uint simdgroups [[simdgroups_per_threadgroup]],
                              uint lane [[thread_index_in_simdgroup]]) {
  const Operands operands = ATTENTION_OPERANDS;
  const long index = long(position) * simdgroups + simdgroup;
  if (index >= params.rows_and_heads) return;

  // Lane i has share i. A row that has seen no key weighs nothing, against whatever normaliser.
  const bool has_share = int(lane) < params.splits;
  const float lse =
      has_share ? operands.partial_lse[lane * params.rows_and_heads + index] : -INFINITY;
  const float most = simd_max(lse), reference = most == -INFINITY ? 0.0f : most;
  const float weight = has_share ? exp(lse - reference) : 0.0f, total = simd_sum(weight);
  const float share = total == 0.0f ? 0.0f : weight / total;

  for (int first = 0; first < HEAD_DIM_V; first += 32) {
    const int d = first + int(lane);
    float sum = 0.0f;
    for (int split = 0; split < params.splits; ++split) {
      const float factor = simd_shuffle(share, ushort(split));
      const long place = split * params.rows_and_heads + index;
      if (d < HEAD_DIM_V) sum = fma(factor, operands.partial_o[place * HEAD_DIM_V + d], sum);
    }
    if (d < HEAD_DIM_V) operands.o[index * HEAD_DIM_V + d] = Element(sum);
  }

  const long row = index / params.heads_q, head = index % params.heads_q;
  const long rows = params.lse_stride_head, batch = row / rows;
  if (lane == 0)
    operands.lse[batch * params.lse_stride_batch + head * rows + row % rows] =
        total == 0.0f ? -INFINITY : reference + log(total);
}
