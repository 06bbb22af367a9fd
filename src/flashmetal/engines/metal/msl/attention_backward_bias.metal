// The gradient of an additive bias: that of the logits, summed over whatever the bias is broadcast
// over. A threadgroup owns one [OWNED][STREAMED] tile of it ([1][STREAMED] of a bias of one row)
// and visits every batch, head and, for one row, query block that shares the tile: no atomics, and
// no array but the gradient itself.

// Adds one head's gradient of the tile's logits.
inline void add(thread Scores& sum, thread Scores& scores, thread Scores& grad_scores,
                constant AttentionParams& params, const thread Operands& operands,
                const thread Sequence& sequence, const thread Score& score, const thread Mask& mask,
                const thread Dropout& dropout, int head, int first_row, int first_key, Lane lane) {
#pragma clang loop unroll(full)
  for (int i = 0; i < ROW_FRAGMENTS; ++i) {
    const int row = first_row + i * 8 + lane.row;
    const RowStatistics statistics = RowStatistics::load(params, operands, sequence, head, row);
    uint4 drawn = 0;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_FRAGMENTS; ++j) {
      if (HAS_DROPOUT && j % 4 == 0) drawn = dropout.draw(row, first_key + j * 8 + lane.column);
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + j * 8 + lane.column + e;
        if (!mask.keeps(row, key)) continue;
        sum.fragments[i][j].thread_elements()[e] +=
            Pair::of(scores.fragments[i][j].thread_elements()[e],
                     grad_scores.fragments[i][j].thread_elements()[e], true, statistics, score,
                     HAS_DROPOUT ? dropout.weight(drawn, key) : 1.0f, row, key)
                .grad_logit;
      }
    }
  }
}

// A fragment column is spread over the eight lanes that differ in bits 1, 2 and 4.
inline float column_sum(float x) {
  x += simd_shuffle_xor(x, ushort(2));
  x += simd_shuffle_xor(x, ushort(4));
  return x + simd_shuffle_xor(x, ushort(16));
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_backward_bias(
    ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  threadgroup Element k_tile[STREAMED * Cut<HEAD_DIM>::STRIDE];
  threadgroup Element v_tile[STREAMED * Cut<HEAD_DIM_V>::STRIDE];
  threadgroup float column_sums[SIMDGROUPS][STREAMED];

  const Operands operands = ATTENTION_OPERANDS;
  const int key = int(position.x) * STREAMED;
  const int own_batch = int(position.z) / int(params.bias_heads);
  const int own_head = int(position.z) % int(params.bias_heads);
  const bool one_row = params.bias_rows == 1;
  const Lane lane = Lane::of(lane_index);
  Scores sum = Scores::zero();

  const int last_batch = params.bias_batches == 1 ? int(params.batch) - 1 : own_batch;
  const int last_head = params.bias_heads == 1 ? int(params.heads_q) - 1 : own_head;
  for (int batch = own_batch; batch <= last_batch; ++batch) {
    const Sequence sequence = Sequence::load(params, operands, batch);
    const Mask mask = Mask::of(params, sequence);
    const int own_row = int(position.y) * OWNED;
    const int row_end = one_row ? sequence.q_length : min(own_row + OWNED, sequence.q_length);
    for (int head = own_head; head <= last_head; ++head) {
      const int head_k = head / int(params.heads_per_kv_head);
      const Score score = Score::of(params, scalars, operands, sequence, head);
      const Dropout dropout = Dropout::of(params, scalars, operands, batch, head);
      for (int block = own_row; block < row_end; block += OWNED) {
        if (key >= mask.key_end(block + OWNED - 1) || key + STREAMED <= mask.key_begin(block))
          continue;
        const int first_row = block + int(simdgroup) * ROWS;
        const int rows_left = sequence.q_length - first_row;
        const device Element* q =
            operands.q + long(head) * params.q_stride_head +
            sequence.q_offset(params.q_stride_batch, params.q_stride_row, first_row);
        const device Element* grad_o =
            operands.grad_o + long(head) * params.grad_o_stride_head +
            sequence.q_offset(params.grad_o_stride_batch, params.grad_o_stride_row, first_row);
        stage_keys_and_values(k_tile, v_tile, keys_of(params, operands, head_k),
                              values_of(params, operands, head_k), sequence, key, thread_index);
        threadgroup_barrier(mem_flags::mem_threadgroup);
        const StagedBlock<HEAD_DIM> k = {k_tile};
        const StagedBlock<HEAD_DIM_V> v = {v_tile};
        Scores scores = Scores::multiply(
            Owned<HEAD_DIM>::load(q, params.q_stride_row, rows_left, lane), k, lane);
        Scores grad_scores = Scores::multiply(
            Owned<HEAD_DIM_V>::load(grad_o, params.grad_o_stride_row, rows_left, lane), v, lane);
        add(sum, scores, grad_scores, params, operands, sequence, score, mask, dropout, head,
            first_row, key, lane);
        threadgroup_barrier(mem_flags::mem_threadgroup);
      }
    }
  }

  device BiasElement* grad_bias =
      operands.grad_bias + long(position.z) * params.bias_rows * params.seqlen_k;
  for (int j = 0; j < STREAMED_FRAGMENTS; ++j)
    for (int e = 0; e < 2; ++e) {
      const int column = j * 8 + lane.column + e;
      float over_rows = 0.0f;
      for (int i = 0; i < ROW_FRAGMENTS; ++i) {
        const float element = sum.fragments[i][j].thread_elements()[e];
        const int row = int(position.y) * OWNED + int(simdgroup) * ROWS + i * 8 + lane.row;
        over_rows += element;
        if (!one_row && row < params.bias_rows && key + column < params.seqlen_k)
          grad_bias[long(row) * params.seqlen_k + key + column] = BiasElement(element);
      }
      over_rows = column_sum(over_rows);
      if (lane.row == 0) column_sums[simdgroup][column] = over_rows;
    }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int column = int(thread_index);
  if (!one_row || column >= STREAMED || key + column >= params.seqlen_k) return;
  float total = 0.0f;
  for (int s = 0; s < SIMDGROUPS; ++s) total += column_sums[s][column];
  grad_bias[key + column] = BiasElement(total);
}
