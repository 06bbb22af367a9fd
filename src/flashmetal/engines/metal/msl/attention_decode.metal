// Attention of few queries over many keys (split over keys as in FlashDecoding, Dao et al. 2023).
// The queries of all heads of a group are the rows of one tile, so keys and values are read once.
// They go from device memory straight into fragments, dequantised on the way: each simdgroup takes
// key blocks of its own, nothing is shared until the end, and the loop has no barrier.

// Floats a lane holds of the output of a row group, and of its whole share.
constant constexpr int OUTPUTS = Accumulator<HEAD_DIM_V>::ELEMENTS;
constant constexpr int SHARE = ROW_GROUPS * (OUTPUTS + 2);

// Sums the teams' shares into the first's; all of them lie in registers in the same way.
inline void gather(thread Accumulator<HEAD_DIM_V>& output, thread OnlineSoftmax* softmax,
                   threadgroup float* shares,  // [TEAM][SHARE][32]
                   int team, Lane lane) {
  threadgroup float* const mine = shares + lane.part * SHARE * 32 + lane.index;
  for (int other = 1; other < TEAMS; ++other) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (team == other) {
      threadgroup float* share = mine;
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_GROUPS; ++i) {
        share[0] = softmax[i].row_max_log2;
        share[32] = softmax[i].row_sum;
        share += 64;
#pragma clang loop unroll(full)
        for (int element = 0; element < OUTPUTS; ++element, share += 32)
          *share = output.get(i, element);
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (team == 0) {
      const threadgroup float* share = mine;
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_GROUPS; ++i) {
        const OnlineSoftmax theirs = {share[0], share[32]};
        const Merge merge = softmax[i].merge(theirs);
        share += 64;
#pragma clang loop unroll(full)
        for (int element = 0; element < OUTPUTS; ++element, share += 32)
          output.set(i, element, output.get(i, element) * merge.ours + *share * merge.theirs);
      }
    }
  }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_decode(
    ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  threadgroup float exchange[EXCHANGED];
  threadgroup float shares[TEAM * SHARE * 32];

  const Operands operands = ATTENTION_OPERANDS;
  const int3 place = place_in_grid(params, position);
  const int splits = int(params.splits), split = place.x % splits;
  const int head_k = place.y;
  const Sequence sequence = Sequence::load(params, operands, place.z);
  const int first_row = place.x / splits * ROWS, rows_q = sequence.q_length * GROUP;
  if (first_row >= rows_q) return;  // a shorter sequence of the batch

  const Mask mask = Mask::of(params, sequence);
  const Dropout dropout = {};
  const Lane lane = Lane::of(lane_index, simdgroup, exchange);
  const int team = int(simdgroup) / TEAM;
  TileRows rows = {first_row, {}};
  const device Element* q_rows[ROW_GROUPS];
  bool valid[ROW_GROUPS];
  OnlineSoftmax softmax[ROW_GROUPS];
  for (int i = 0; i < ROW_GROUPS; ++i) {
    const int row = min(rows.row(i, lane), rows_q - 1), head = head_k * GROUP + row % GROUP;
    rows.scores[i] = Score::of(params, scalars, operands, sequence, head);
    q_rows[i] = operands.q + long(head) * params.q_stride_head +
                sequence.q_offset(params.q_stride_batch, params.q_stride_row, row / GROUP);
    valid[i] = rows.row(i, lane) < rows_q;
    // The sink is a key of the first share.
    softmax[i] =
        split == 0 && team == 0 ? OnlineSoftmax::start(operands, head, 4) : OnlineSoftmax::empty();
  }
  const Owned<HEAD_DIM> queries = Owned<HEAD_DIM>::load(q_rows, valid, lane);
  Accumulator<HEAD_DIM_V> output = Accumulator<HEAD_DIM_V>::zero();

  // Each split has its own run of key blocks, which its teams take in turn.
  const int key_begin = mask.key_begin(TileRows::query_of(first_row)) / STREAMED;
  const int key_end = (mask.key_end(rows.last_query()) + STREAMED - 1) / STREAMED;
  const int share = (max(key_end - key_begin, 0) + splits - 1) / splits;
  const int block_end = min(key_begin + (split + 1) * share, key_end);
  const Keys keys = keys_of(params, operands, head_k);
  const Values values = values_of(params, operands, head_k);
  KeyBlock k = KeyBlock::at(nullptr);
  ValueBlock v = ValueBlock::at(nullptr);
  for (int first = key_begin + split * share; first < block_end; first += TEAMS) {
    const int key = (first + team) * STREAMED;
    const bool visible = first + team < block_end;
    Scores scores = Scores::zero();
    const Pages pages = Pages::of(sequence, key, lane_index);
    if (visible) {
      k.take(keys, sequence, pages, lane_index);
      v.take(values, sequence, pages, lane_index);
      scores.multiply(queries, k, lane);
    }
    add_parts(scores, lane);
    if (visible) {
      update(scores, softmax, output, rows, mask, dropout, key, pages.hidden, lane);
      output.accumulate(scores, v, lane);
    }
    if (TEAM > 1) threadgroup_barrier(mem_flags::mem_threadgroup);
  }

  gather(output, softmax, shares, team, lane);
  if (team != 0) return;
  for (int i = 0; i < ROW_GROUPS; ++i) {
    softmax[i].row_sum = row_sum(softmax[i].row_sum);
    const int row = rows.row(i, lane), head = head_k * GROUP + row % GROUP;
    if (row >= rows_q) continue;
    if (splits == 1) {
      output.store(i, output_row(params, operands, sequence, head, row / GROUP),
                   softmax[i].inverse_sum(), lane);
      if (lane.column == 0 && lane.part == 0)
        store_lse(params, operands, sequence, head, row / GROUP, softmax[i].lse());
      continue;
    }
    const long index = partial_index(params, sequence, split, head, row / GROUP);
    output.store(i, operands.partial_o + index * HEAD_DIM_V, softmax[i].inverse_sum(), lane);
    if (lane.column == 0 && lane.part == 0) operands.partial_lse[index] = softmax[i].lse();
  }
}
