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
  for (int i = 0; i < ROW_GROUPS; ++i) {
    const int row = first_row + i * 8 + lane.row;
    const RowStatistics statistics = RowStatistics::load(params, operands, sequence, head, row);
    uint4 drawn = 0;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_GROUPS; ++j) {
      if (HAS_DROPOUT && j % 4 == 0) drawn = dropout.draw(row, first_key + j * 8 + lane.column);
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int key = first_key + j * 8 + lane.column + e;
        if (!mask.keeps(row, key)) continue;
        const Pair pair =
            Pair::of(scores.get(i, j, e), grad_scores.get(i, j, e), true, statistics, score,
                     HAS_DROPOUT ? dropout.weight(drawn, key) : 1.0f, row, key);
        sum.set(i, j, e, sum.get(i, j, e) + pair.grad_logit);
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
  threadgroup Element k_tile[STAGED ? STREAMED * Cut<HEAD_DIM>::STRIDE : 1];
  threadgroup Element v_tile[STAGED ? STREAMED * Cut<HEAD_DIM_V>::STRIDE : 1];
  threadgroup float exchange[EXCHANGED];
  threadgroup float column_sums[TEAMS][STREAMED];

  const Operands operands = ATTENTION_OPERANDS;
  const int3 place = place_in_grid(params, position);
  const int key = place.x * STREAMED;
  const int own_batch = place.z / int(params.bias_heads);
  const int own_head = place.z % int(params.bias_heads);
  const bool one_row = params.bias_rows == 1;
  const Lane lane = Lane::of(lane_index, simdgroup, exchange);
  const int team = int(simdgroup) / TEAM;
  KeyBlock k = KeyBlock::at(k_tile);
  ValueBlock v = ValueBlock::at(v_tile);
  Scores sum = Scores::zero();

  const int last_batch = params.bias_batches == 1 ? int(params.batch) - 1 : own_batch;
  const int last_head = params.bias_heads == 1 ? int(params.heads_q) - 1 : own_head;
  for (int batch = own_batch; batch <= last_batch; ++batch) {
    const Sequence sequence = Sequence::load(params, operands, batch);
    const Mask mask = Mask::of(params, sequence);
    const int own_row = place.y * OWNED;
    const int row_end = one_row ? sequence.q_length : min(own_row + OWNED, sequence.q_length);
    for (int head = own_head; head <= last_head; ++head) {
      const int head_k = head / int(params.heads_per_kv_head);
      const Keys keys = keys_of(params, operands, head_k);
      const Values values = values_of(params, operands, head_k);
      const Score score = Score::of(params, scalars, operands, sequence, head);
      const Dropout dropout = Dropout::of(params, scalars, operands, batch, head);
      for (int block = own_row; block < row_end; block += OWNED) {
        if (key >= mask.key_end(block + OWNED - 1) || key + STREAMED <= mask.key_begin(block))
          continue;
        const int first_row = block + team * ROWS;
        const int rows_left = sequence.q_length - first_row;
        const device Element* q =
            operands.q + long(head) * params.q_stride_head +
            sequence.q_offset(params.q_stride_batch, params.q_stride_row, first_row);
        const device Element* grad_o =
            operands.grad_o + long(head) * params.grad_o_stride_head +
            sequence.q_offset(params.grad_o_stride_batch, params.grad_o_stride_row, first_row);
        const Pages pages = Pages::of(sequence, key, lane_index);
        k.take(keys, sequence, pages, thread_index);
        v.take(values, sequence, pages, thread_index);
        if (STAGED) threadgroup_barrier(mem_flags::mem_threadgroup);
        Scores scores = Scores::zero(), grad_scores = Scores::zero();
        scores.multiply(Owned<HEAD_DIM>::load(q, params.q_stride_row, rows_left, lane), k, lane);
        grad_scores.multiply(
            Owned<HEAD_DIM_V>::load(grad_o, params.grad_o_stride_row, rows_left, lane), v, lane);
        add_parts(scores, grad_scores, lane);
        add(sum, scores, grad_scores, params, operands, sequence, score, mask, dropout, head,
            first_row, key, lane);
        if (STAGED || TEAM > 1) threadgroup_barrier(mem_flags::mem_threadgroup);
      }
    }
  }

  device BiasElement* grad_bias =
      operands.grad_bias + long(place.z) * params.bias_rows * params.seqlen_k;
  for (int j = 0; j < STREAMED_GROUPS; ++j)
    for (int e = 0; e < 2; ++e) {
      const int column = j * 8 + lane.column + e;
      float over_rows = 0.0f;
      for (int i = 0; i < ROW_GROUPS; ++i) {
        const float element = sum.get(i, j, e);
        const int row = place.y * OWNED + team * ROWS + i * 8 + lane.row;
        over_rows += element;
        if (!one_row && row < params.bias_rows && key + column < params.seqlen_k)
          grad_bias[long(row) * params.seqlen_k + key + column] = BiasElement(element);
      }
      over_rows = column_sum(over_rows);
      if (lane.row == 0 && lane.part == 0) column_sums[team][column] = over_rows;
    }
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const int column = int(thread_index);
  if (!one_row || column >= STREAMED || key + column >= params.seqlen_k) return;
  float total = 0.0f;
  for (int t = 0; t < TEAMS; ++t) total += column_sums[t][column];
  grad_bias[key + column] = BiasElement(total);
}
