// The gradient of q: dQ = scale * dS K. A threadgroup owns OWNED queries of one head and streams
// the key blocks they see, as the forward kernel does; S and dP are made again from q, k, v and
// grad_o, and never leave registers.

// Turns products S and dP into dS, which takes dP's place. ALiBi's distances, each times the
// gradient of its logit, add up to the gradient of the slope.
inline void differentiate(thread Scores& scores, thread Scores& grad_scores,
                          thread float* distances, const thread RowStatistics* statistics,
                          const thread Score& score, const thread Mask& mask,
                          const thread Dropout& dropout, int first_row, int first_key, Lane lane) {
  const bool whole =
      mask.keeps_all(first_row, first_row + ROWS - 1, first_key, first_key + STREAMED - 1);
#pragma clang loop unroll(full)
  for (int i = 0; i < ROW_GROUPS; ++i) {
    const int row = first_row + i * 8 + lane.row;
    uint4 drawn = 0;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_GROUPS; ++j) {
      if (HAS_DROPOUT && j % 4 == 0) drawn = dropout.draw(row, first_key + j * 8 + lane.column);
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + j * 8 + lane.column + e;
        const float product = scores.get(i, j, e);
        const Pair pair = Pair::of(product, grad_scores.get(i, j, e), whole || mask.keeps(row, key),
                                   statistics[i], score,
                                   HAS_DROPOUT ? dropout.weight(drawn, key) : 1.0f, row, key);
        grad_scores.set(i, j, e, pair.grad_product);
        if (HAS_SLOPE_GRADIENT) distances[i] += pair.grad_logit * score.distance(row, key);
      }
    }
  }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_backward_q(
    ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  threadgroup Element k_tile[STAGED ? STREAMED * Cut<HEAD_DIM>::STRIDE : 1];
  threadgroup Element v_tile[STAGED ? STREAMED * Cut<HEAD_DIM_V>::STRIDE : 1];
  threadgroup float exchange[EXCHANGED];

  const Operands operands = ATTENTION_OPERANDS;
  const int3 place = place_in_grid(params, position);
  const int head = place.y, head_k = head / int(params.heads_per_kv_head);
  const Sequence sequence = Sequence::load(params, operands, place.z);
  const int blocks = (sequence.q_length + OWNED - 1) / OWNED;
  if (place.x >= blocks) return;  // a shorter sequence of the batch

  // With a causal band later rows see more keys: starting them first shortens the tail.
  const int block = HAS_WINDOW_RIGHT ? blocks - 1 - place.x : place.x;
  const int first_row = block * OWNED + int(simdgroup) / TEAM * ROWS;
  const int rows_left = sequence.q_length - first_row;
  const Mask mask = Mask::of(params, sequence);
  const Score score = Score::of(params, scalars, operands, sequence, head);
  const Dropout dropout = Dropout::of(params, scalars, operands, sequence.batch, head);
  const Lane lane = Lane::of(lane_index, simdgroup, exchange);

  const device Element* q =
      operands.q + long(head) * params.q_stride_head +
      sequence.q_offset(params.q_stride_batch, params.q_stride_row, first_row);
  const device Element* grad_o =
      operands.grad_o + long(head) * params.grad_o_stride_head +
      sequence.q_offset(params.grad_o_stride_batch, params.grad_o_stride_row, first_row);
  const Owned<HEAD_DIM> queries = Owned<HEAD_DIM>::load(q, params.q_stride_row, rows_left, lane);
  const Owned<HEAD_DIM_V> grad_outputs =
      Owned<HEAD_DIM_V>::load(grad_o, params.grad_o_stride_row, rows_left, lane);
  RowStatistics statistics[ROW_GROUPS];
  for (int i = 0; i < ROW_GROUPS; ++i)
    statistics[i] =
        RowStatistics::load(params, operands, sequence, head, first_row + i * 8 + lane.row);
  Accumulator<HEAD_DIM> grad_q = Accumulator<HEAD_DIM>::zero();
  float distances[ROW_GROUPS] = {};

  const Keys keys = keys_of(params, operands, head_k);
  const Values values = values_of(params, operands, head_k);
  KeyBlock k = KeyBlock::at(k_tile);
  ValueBlock v = ValueBlock::at(v_tile);
  const int key_end = mask.key_end(block * OWNED + OWNED - 1);
  const int simdgroup_begin = mask.key_begin(first_row);
  const int simdgroup_end = mask.key_end(first_row + ROWS - 1);
  for (int key = mask.key_begin(block * OWNED) / STREAMED * STREAMED; key < key_end;
       key += STREAMED) {
    const Pages pages = Pages::of(sequence, key, lane_index);
    k.take(keys, sequence, pages, thread_index);
    v.take(values, sequence, pages, thread_index);
    if (STAGED) threadgroup_barrier(mem_flags::mem_threadgroup);
    const bool visible = key < simdgroup_end && key + STREAMED > simdgroup_begin;
    Scores scores = Scores::zero(), grad_scores = Scores::zero();
    if (visible) {
      scores.multiply(queries, k, lane);
      grad_scores.multiply(grad_outputs, v, lane);
    }
    add_parts(scores, grad_scores, lane);
    if (visible) {
      differentiate(scores, grad_scores, distances, statistics, score, mask, dropout, first_row,
                    key, lane);
      grad_q.accumulate(grad_scores, k, lane);
    }
    if (STAGED || TEAM > 1) threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  for (int i = 0; i < ROW_GROUPS; ++i) {
    const int row = first_row + i * 8 + lane.row;
    if (HAS_SLOPE_GRADIENT) distances[i] = row_sum(distances[i]);
    if (row >= sequence.q_length) continue;
    if (HAS_SLOPE_GRADIENT && lane.column == 0 && lane.part == 0)
      operands.distances[row_index(params, sequence, head, row)] = distances[i];
    device Element* grad_row =
        operands.grad_q + long(head) * HEAD_DIM +
        sequence.q_offset(params.grad_q_stride_batch, params.heads_q * HEAD_DIM, row);
    grad_q.store(i, grad_row, scalars.scale, lane);
  }
}
