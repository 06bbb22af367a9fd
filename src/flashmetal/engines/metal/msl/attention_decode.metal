// Attention of few queries over many keys (split over keys as in FlashDecoding, Dao et al. 2023).
// The queries of all heads of a group are the rows of one tile, so keys and values are read once.
// They go from device memory straight into fragments, dequantised on the way: each simdgroup takes
// key blocks of its own, nothing is shared until the end, and the loop has no barrier.

// The scale that lane `key` holds of the elements from d on, which lie in a strip of SPAN elements.
template <int FORMAT, int SPAN>
inline float shuffled_scale(const thread float* scales, int key, int strip, int d) {
  if (FORMAT == DENSE) return 1.0f;
  if (FORMAT != INT4) return simd_shuffle(scales[0], ushort(key));
  constexpr int GROUPS = SPAN < INT4_GROUP ? 1 : SPAN / INT4_GROUP;
  const int first = strip * SPAN / INT4_GROUP;
  float scale = 0.0f;
#pragma clang loop unroll(full)
  for (int group = 0; group < GROUPS; ++group) {
    const float theirs = simd_shuffle(scales[first + group], ushort(key));
    if (d / INT4_GROUP == first + group) scale = theirs;
  }
  return scale;
}

// STREAMED keys and their values. Lane i knows the page and the scales of key i.
struct DirectKeys {
  Keys rows;
  Sequence sequence;
  int first;
  int page;  // -1: no key
  float scales[K_FORMAT == INT4 ? HEAD_DIM / INT4_GROUP : 1];

  TransposedStrip<HEAD_DIM> transposed(int row_fragment, int strip, Lane lane) const thread {
    constexpr int STRIP = Cut<HEAD_DIM>::STRIP;
    TransposedStrip<HEAD_DIM> loaded;
    const int d = (strip * 8 + lane.row) * STRIP;
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; ++side) {
      const int key = row_fragment * 8 + lane.column + side;
      const int on_page = simd_shuffle(page, ushort(key));
      const float scale = shuffled_scale<K_FORMAT, 8 * STRIP>(scales, key, strip, d);
      Packed<Element, STRIP> chunk = {};
      if (on_page >= 0)
        chunk = Keys::elements<STRIP>(rows.row(sequence, on_page, first + key), d, scale);
      loaded.put(side, chunk);
    }
    return loaded;
  }
};

struct DirectValues {
  Values rows;
  Sequence sequence;
  int first;
  int page;
  float scales[V_FORMAT == INT4 ? HEAD_DIM_V / INT4_GROUP : 1];

  ColumnStrip<HEAD_DIM_V> columns(int row_fragment, int strip, Lane lane) const thread {
    constexpr int STRIP = Cut<HEAD_DIM_V>::COLUMN_STRIP;
    const int key = row_fragment * 8 + lane.row, d = (strip * 8 + lane.column) * STRIP;
    const int on_page = simd_shuffle(page, ushort(key));
    const float scale = shuffled_scale<V_FORMAT, 8 * STRIP>(scales, key, strip, d);
    Packed<Element, 2 * STRIP> chunk = {};
    if (on_page >= 0)
      chunk = Values::elements<2 * STRIP>(rows.row(sequence, on_page, first + key), d, scale);
    return ColumnStrip<HEAD_DIM_V>::of(chunk);
  }
};

// Sums the simdgroups' shares into the first's; all of them lie in registers in the same way.
inline void gather(thread Accumulator<HEAD_DIM_V>& output, thread OnlineSoftmax* softmax,
                   threadgroup float* shares,  // [SHARE][32]
                   uint simdgroup, uint lane_index) {
  for (int other = 1; other < SIMDGROUPS; ++other) {
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (int(simdgroup) == other) {
      threadgroup float* share = shares + lane_index;
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_FRAGMENTS; ++i) {
        *share = softmax[i].row_max_log2;
        share[32] = softmax[i].row_sum;
        share += 64;
#pragma clang loop unroll(full)
        for (int f = 0; f < Cut<HEAD_DIM_V>::FRAGMENTS; ++f) {
          share[0] = output.fragments[i][f].thread_elements()[0];
          share[32] = output.fragments[i][f].thread_elements()[1];
          share += 64;
        }
      }
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (simdgroup == 0) {
      const threadgroup float* share = shares + lane_index;
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_FRAGMENTS; ++i) {
        const OnlineSoftmax theirs = {share[0], share[32]};
        const Merge merge = softmax[i].merge(theirs);
        share += 64;
#pragma clang loop unroll(full)
        for (int f = 0; f < Cut<HEAD_DIM_V>::FRAGMENTS; ++f) {
#pragma clang loop unroll(full)
          for (int e = 0; e < 2; ++e)
            output.fragments[i][f].thread_elements()[e] =
                output.fragments[i][f].thread_elements()[e] * merge.ours +
                share[32 * e] * merge.theirs;
          share += 64;
        }
      }
    }
  }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_decode(
    ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
    uint simdgroup [[simdgroup_index_in_threadgroup]],
    uint lane_index [[thread_index_in_simdgroup]]) {
  threadgroup float shares[ROW_FRAGMENTS * (Cut<HEAD_DIM_V>::FRAGMENTS + 1) * 64];

  const Operands operands = ATTENTION_OPERANDS;
  const int splits = int(params.splits), split = int(position.x) % splits;
  const int head_k = int(position.y);
  const Sequence sequence = Sequence::load(params, operands, int(position.z));
  const int first_row = int(position.x) / splits * ROWS, rows_q = sequence.q_length * GROUP;
  if (first_row >= rows_q) return;  // a shorter sequence of the batch

  const Mask mask = Mask::of(params, sequence);
  const Dropout dropout = {};
  const Lane lane = Lane::of(lane_index);
  TileRows rows = {first_row, {}};
  const device Element* q_rows[ROW_FRAGMENTS];
  bool valid[ROW_FRAGMENTS];
  OnlineSoftmax softmax[ROW_FRAGMENTS];
  for (int i = 0; i < ROW_FRAGMENTS; ++i) {
    const int row = min(rows.row(i, lane), rows_q - 1), head = head_k * GROUP + row % GROUP;
    rows.scores[i] = Score::of(params, scalars, operands, sequence, head);
    q_rows[i] = operands.q + long(head) * params.q_stride_head +
                sequence.q_offset(params.q_stride_batch, params.q_stride_row, row / GROUP);
    valid[i] = rows.row(i, lane) < rows_q;
    // The sink is a key of the first share.
    softmax[i] = split == 0 && simdgroup == 0 ? OnlineSoftmax::start(operands, head, 4)
                                              : OnlineSoftmax::empty();
  }
  const Owned<HEAD_DIM> queries = Owned<HEAD_DIM>::load(q_rows, valid, lane);
  Accumulator<HEAD_DIM_V> output = Accumulator<HEAD_DIM_V>::zero();

  // Each split has its own run of key blocks, which its simdgroups take in turn.
  const int key_begin = mask.key_begin(TileRows::query_of(first_row)) / STREAMED;
  const int key_end = (mask.key_end(rows.last_query()) + STREAMED - 1) / STREAMED;
  const int share = (max(key_end - key_begin, 0) + splits - 1) / splits;
  const int block_end = min(key_begin + (split + 1) * share, key_end);
  DirectKeys k = {keys_of(params, operands, head_k), sequence};
  DirectValues v = {values_of(params, operands, head_k), sequence};
  for (int block = key_begin + split * share + int(simdgroup); block < block_end;
       block += SIMDGROUPS) {
    const int first_key = block * STREAMED, key = first_key + int(lane_index);
    int page = -1;
    if (int(lane_index) < STREAMED && key < sequence.k_length) {
      page = sequence.page(key);
      if (page >= 0) {
        for (int d = 0; d < HEAD_DIM; d += INT4_GROUP)
          if (d == 0 || K_FORMAT == INT4)
            k.scales[K_FORMAT == INT4 ? d / INT4_GROUP : 0] = k.rows.scale(sequence, page, key, d);
        for (int d = 0; d < HEAD_DIM_V; d += INT4_GROUP)
          if (d == 0 || V_FORMAT == INT4)
            v.scales[V_FORMAT == INT4 ? d / INT4_GROUP : 0] = v.rows.scale(sequence, page, key, d);
      }
    }
    k.first = v.first = first_key;
    k.page = v.page = page;
    const uint hidden = HAS_PAGES || HAS_LEFTPAD_K ? uint(ulong(simd_ballot(page < 0))) : 0;
    Scores scores = Scores::multiply(queries, k, lane);
    update(scores, softmax, output, rows, mask, dropout, first_key, hidden, lane);
    output.accumulate(scores, v, lane);
  }

  gather(output, softmax, shares, simdgroup, lane_index);
  if (simdgroup != 0) return;
  for (int i = 0; i < ROW_FRAGMENTS; ++i) {
    softmax[i].row_sum = row_sum(softmax[i].row_sum);
    const int row = rows.row(i, lane), head = head_k * GROUP + row % GROUP;
    if (row >= rows_q) continue;
    if (splits == 1) {
      output.store(i, output_row(params, operands, sequence, head, row / GROUP),
                   softmax[i].inverse_sum(), lane);
      if (lane.column == 0)
        store_lse(params, operands, sequence, head, row / GROUP, softmax[i].lse());
      continue;
    }
    const long index = partial_index(params, sequence, split, head, row / GROUP);
    output.store(i, operands.partial_o + index * HEAD_DIM_V, softmax[i].inverse_sum(), lane);
    if (lane.column == 0) operands.partial_lse[index] = softmax[i].lse();
  }
}
