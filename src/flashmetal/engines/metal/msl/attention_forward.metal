// Attention forward on simdgroup matrices (FlashAttention-2, Dao 2023). One threadgroup owns
// OWNED query rows of one head, each simdgroup ROWS of them; key blocks stream through
// threadgroup memory. O, S and P live in registers, everything is accumulated in fp32.

// Turns products into probabilities and takes them into the running softmax of each row.
inline void update(thread Scores& scores, thread OnlineSoftmax* softmax,
                   thread Accumulator<HEAD_DIM_V>& output, const thread Score& score,
                   const thread Mask& mask, const thread Dropout& dropout, int first_row,
                   int first_key, Lane lane) {
  const bool whole =
      mask.keeps_all(first_row, first_row + ROWS - 1, first_key, first_key + STREAMED - 1);
#pragma clang loop unroll(full)
  for (int i = 0; i < ROW_FRAGMENTS; ++i) {
    const int row = first_row + i * 8 + lane.row;
    float block_max = MASKED_LOG2;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_FRAGMENTS; ++j)
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + j * 8 + lane.column + e;
        const float product = scores.fragments[i][j].thread_elements()[e];
        const float logit_log2 =
            whole || mask.keeps(row, key) ? score.logit_log2(product, row, key) : MASKED_LOG2;
        scores.fragments[i][j].thread_elements()[e] = logit_log2;
        block_max = max(block_max, logit_log2);
      }

    output.scale_rows(i, softmax[i].rescale(row_max(block_max)));
    uint4 drawn = 0;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_FRAGMENTS; ++j) {
      if (HAS_DROPOUT && j % 4 == 0) drawn = dropout.draw(row, first_key + j * 8 + lane.column);
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const float logit_log2 = scores.fragments[i][j].thread_elements()[e];
        float p = softmax[i].probability(logit_log2);
        if (HAS_DROPOUT) p *= dropout.weight(drawn, first_key + j * 8 + lane.column + e);
        scores.fragments[i][j].thread_elements()[e] = p;
      }
    }
  }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_forward(
    ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  threadgroup Element k_tile[STREAMED * Cut<HEAD_DIM>::STRIDE];
  threadgroup Element v_tile[STREAMED * Cut<HEAD_DIM_V>::STRIDE];

  const Operands operands = ATTENTION_OPERANDS;
  const int head = int(position.y), head_k = head / int(params.heads_per_kv_head);
  const Sequence sequence = Sequence::load(params, operands, int(position.z));
  const int blocks = (sequence.q_length + OWNED - 1) / OWNED;
  if (int(position.x) >= blocks) return;  // a shorter sequence of the batch

  // With a causal band later rows see more keys: starting them first shortens the tail.
  const int block = HAS_WINDOW_RIGHT ? blocks - 1 - int(position.x) : int(position.x);
  const int first_row = block * OWNED + int(simdgroup) * ROWS;
  const Mask mask = Mask::of(params, sequence);
  const Score score = Score::of(params, scalars, operands, sequence, head);
  const Dropout dropout = Dropout::of(params, scalars, operands, sequence.batch, head);
  const Lane lane = Lane::of(lane_index);

  const device Element* q =
      operands.q + long(head) * params.q_stride_head +
      sequence.q_offset(params.q_stride_batch, params.q_stride_row, first_row);
  const Owned<HEAD_DIM> queries =
      Owned<HEAD_DIM>::load(q, params.q_stride_row, sequence.q_length - first_row, lane);
  Accumulator<HEAD_DIM_V> output = Accumulator<HEAD_DIM_V>::zero();
  OnlineSoftmax softmax[ROW_FRAGMENTS];
  for (int i = 0; i < ROW_FRAGMENTS; ++i) softmax[i] = OnlineSoftmax::start(operands, head, 4);

  const int key_end = mask.key_end(block * OWNED + OWNED - 1);
  const int simdgroup_begin = mask.key_begin(first_row);
  const int simdgroup_end = mask.key_end(first_row + ROWS - 1);
  for (int key = mask.key_begin(block * OWNED) / STREAMED * STREAMED; key < key_end;
       key += STREAMED) {
    const device Element* k = operands.k + long(head_k) * params.k_stride_head +
                              sequence.k_offset(params.k_stride_batch, params.k_stride_row, key);
    const device Element* v = operands.v + long(head_k) * params.v_stride_head +
                              sequence.k_offset(params.v_stride_batch, params.v_stride_row, key);
    stage<HEAD_DIM>(k_tile, k, params.k_stride_row, sequence.k_length - key, thread_index);
    stage<HEAD_DIM_V>(v_tile, v, params.v_stride_row, sequence.k_length - key, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (key < simdgroup_end && key + STREAMED > simdgroup_begin) {
      Scores scores = Scores::multiply(queries, k_tile, lane);
      update(scores, softmax, output, score, mask, dropout, first_row, key, lane);
      output.accumulate(scores, v_tile, lane);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  for (int i = 0; i < ROW_FRAGMENTS; ++i) {
    softmax[i].row_sum = row_sum(softmax[i].row_sum);
    const int row = first_row + i * 8 + lane.row;
    if (row >= sequence.q_length) continue;
    output.store(i, output_row(params, operands, sequence, head, row), softmax[i].inverse_sum(),
                 lane);
    if (lane.column == 0) store_lse(params, operands, sequence, head, row, softmax[i].lse());
  }
}
