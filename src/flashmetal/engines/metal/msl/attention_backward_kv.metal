// The gradients of k and v: dV = P^T dO, dK = scale * dS^T Q. A threadgroup owns OWNED keys of one
// kv head and streams the query blocks that see them, of every query head of its group in turn: the
// sum over the group needs no atomics. S^T and dP^T are made with keys as rows, so that P^T and
// dS^T are left operands as they lie in registers.

// Turns products S^T and dP^T into P^T, with its dropout, and dS^T, in place.
inline void differentiate(thread Scores& scores, thread Scores& grad_scores,
                          const threadgroup RowStatistics* statistics,  // [STREAMED]
                          const thread Score& score, const thread Mask& mask,
                          const thread Dropout& dropout, int first_row, int first_key, Lane lane) {
  const bool whole =
      mask.keeps_all(first_row, first_row + STREAMED - 1, first_key, first_key + ROWS - 1);
#pragma clang loop unroll(full)
  for (int j = 0; j < STREAMED_GROUPS; ++j)
#pragma clang loop unroll(full)
    for (int e = 0; e < 2; ++e) {
      const int column = j * 8 + lane.column + e, row = first_row + column;
      const RowStatistics row_statistics = {statistics[column].lse_log2, statistics[column].delta};
      uint4 drawn = 0;
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_GROUPS; ++i) {
        const int key = first_key + i * 8 + lane.row;
        if (HAS_DROPOUT && i % 4 == 0) drawn = dropout.draw(row, key);
        const float product = scores.get(i, j, e);
        const Pair pair = Pair::of(product, grad_scores.get(i, j, e), whole || mask.keeps(row, key),
                                   row_statistics, score,
                                   HAS_DROPOUT ? dropout.weight(drawn, key) : 1.0f, row, key);
        scores.set(i, j, e, pair.weight);
        grad_scores.set(i, j, e, pair.grad_product);
      }
    }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_backward_kv(
    ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  threadgroup Element q_tile[STAGED ? STREAMED * Cut<HEAD_DIM>::STRIDE : 1];
  threadgroup Element grad_o_tile[STAGED ? STREAMED * Cut<HEAD_DIM_V>::STRIDE : 1];
  threadgroup float exchange[EXCHANGED];
  threadgroup RowStatistics statistics[STREAMED];

  const Operands operands = ATTENTION_OPERANDS;
  const int3 place = place_in_grid(params, position);
  const int head_k = place.y, group = int(params.heads_per_kv_head);
  const Sequence sequence = Sequence::load(params, operands, place.z);
  const int block_begin = place.x * OWNED;
  if (block_begin >= sequence.k_rows) return;  // a shorter sequence of the batch

  const int first_key = block_begin + int(simdgroup) / TEAM * ROWS;
  const int keys_left = sequence.k_length - first_key;
  const Mask mask = Mask::of(params, sequence);
  const Lane lane = Lane::of(lane_index, simdgroup, exchange);

  const device Element* k =
      operands.k + long(head_k) * params.k_stride_head +
      sequence.k_offset(params.k_stride_batch, params.k_stride_row, first_key);
  const device Element* v =
      operands.v + long(head_k) * params.v_stride_head +
      sequence.k_offset(params.v_stride_batch, params.v_stride_row, first_key);
  const Owned<HEAD_DIM> keys = Owned<HEAD_DIM>::load(k, params.k_stride_row, keys_left, lane);
  const Owned<HEAD_DIM_V> values = Owned<HEAD_DIM_V>::load(v, params.v_stride_row, keys_left, lane);
  Accumulator<HEAD_DIM> grad_k = Accumulator<HEAD_DIM>::zero();
  Accumulator<HEAD_DIM_V> grad_v = Accumulator<HEAD_DIM_V>::zero();

  const int row_begin = mask.row_begin(block_begin) / STREAMED * STREAMED;
  const int row_end = block_begin < sequence.k_length ? mask.row_end(block_begin + OWNED - 1) : 0;
  const int simdgroup_begin = mask.row_begin(first_key);
  const int simdgroup_end = keys_left > 0 ? mask.row_end(first_key + ROWS - 1) : 0;
  QueryBlock q_block = QueryBlock::at(q_tile);
  GradOutputBlock grad_o_block = GradOutputBlock::at(grad_o_tile);
  for (int head = head_k * group; head < (head_k + 1) * group; ++head) {
    const Score score = Score::of(params, scalars, operands, sequence, head);
    const Dropout dropout = Dropout::of(params, scalars, operands, sequence.batch, head);
    for (int row = row_begin; row < row_end; row += STREAMED) {
      const int rows_left = sequence.q_length - row;
      const PlainRows q = {operands.q + long(head) * params.q_stride_head +
                               sequence.q_offset(params.q_stride_batch, params.q_stride_row, row),
                           params.q_stride_row};
      const PlainRows grad_o = {
          operands.grad_o + long(head) * params.grad_o_stride_head +
              sequence.q_offset(params.grad_o_stride_batch, params.grad_o_stride_row, row),
          params.grad_o_stride_row};
      q_block.take(q, rows_left, thread_index);
      grad_o_block.take(grad_o, rows_left, thread_index);
      if (int(thread_index) < STREAMED) {
        const RowStatistics loaded =
            RowStatistics::load(params, operands, sequence, head, row + int(thread_index));
        statistics[thread_index].lse_log2 = loaded.lse_log2;
        statistics[thread_index].delta = loaded.delta;
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
      const bool visible = row < simdgroup_end && row + STREAMED > simdgroup_begin;
      Scores scores = Scores::zero(), grad_scores = Scores::zero();
      if (visible) {
        scores.multiply(keys, q_block, lane);
        grad_scores.multiply(values, grad_o_block, lane);
      }
      add_parts(scores, grad_scores, lane);
      if (visible) {
        differentiate(scores, grad_scores, statistics, score, mask, dropout, row, first_key, lane);
        grad_v.accumulate(scores, grad_o_block, lane);
        grad_k.accumulate(grad_scores, q_block, lane);
      }
      threadgroup_barrier(mem_flags::mem_threadgroup);
    }
  }

  const long heads_k = params.heads_q / params.heads_per_kv_head;
  for (int i = 0; i < ROW_GROUPS; ++i) {
    const int key = first_key + i * 8 + lane.row;
    if (key >= sequence.k_rows) continue;
    grad_k.store(i,
                 operands.grad_k + long(head_k) * HEAD_DIM +
                     sequence.k_offset(params.grad_k_stride_batch, heads_k * HEAD_DIM, key),
                 scalars.scale, lane);
    grad_v.store(i,
                 operands.grad_v + long(head_k) * HEAD_DIM_V +
                     sequence.k_offset(params.grad_v_stride_batch, heads_k * HEAD_DIM_V, key),
                 1.0f, lane);
  }
}
