// Attention forward on simdgroup matrices (FlashAttention-2, Dao 2023). One threadgroup owns
// OWNED query rows of one head, each simdgroup ROWS of them; key blocks stream through
// threadgroup memory. O, S and P live in registers, everything is accumulated in fp32.

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_forward(
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
  const Mask mask = Mask::of(params, sequence);
  const TileRows rows = {first_row, {Score::of(params, scalars, operands, sequence, head)}};
  const Keys keys = keys_of(params, operands, head_k);
  const Values values = values_of(params, operands, head_k);
  const Dropout dropout = Dropout::of(params, scalars, operands, sequence.batch, head);
  const Lane lane = Lane::of(lane_index, simdgroup, exchange);

  const device Element* q =
      operands.q + long(head) * params.q_stride_head +
      sequence.q_offset(params.q_stride_batch, params.q_stride_row, first_row);
  const Owned<HEAD_DIM> queries =
      Owned<HEAD_DIM>::load(q, params.q_stride_row, sequence.q_length - first_row, lane);
  Accumulator<HEAD_DIM_V> output = Accumulator<HEAD_DIM_V>::zero();
  OnlineSoftmax softmax[ROW_GROUPS];
  for (int i = 0; i < ROW_GROUPS; ++i) softmax[i] = OnlineSoftmax::start(operands, head, 4);

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
    Scores scores = Scores::zero();
    if (visible) scores.multiply(queries, k, lane);
    add_parts(scores, lane);
    if (visible) {
      update(scores, softmax, output, rows, mask, dropout, key, pages.hidden, lane);
      output.accumulate(scores, v, lane);
    }
    if (STAGED || TEAM > 1) threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  for (int i = 0; i < ROW_GROUPS; ++i) {
    softmax[i].row_sum = row_sum(softmax[i].row_sum);
    const int row = first_row + i * 8 + lane.row;
    if (row >= sequence.q_length) continue;
    output.store(i, output_row(params, operands, sequence, head, row), softmax[i].inverse_sum(),
                 lane);
    if (lane.column == 0 && lane.part == 0)
      store_lse(params, operands, sequence, head, row, softmax[i].lse());
  }
}
