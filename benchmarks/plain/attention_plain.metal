// FlashAttention-2 in its simple form, to compare with: a threadgroup owns OWNED query rows of one
// head, eight a simdgroup. Q and one block of K or V at a time lie in threadgroup memory, scores
// and probabilities go through it too, and all sums are kept in the type of the operands. O is
// rescaled by a diagonal matrix. Masks, scores and the softmax's rules are the product's.

constant constexpr int SIMDGROUPS = OWNED / 8;
constant constexpr int THREADS = SIMDGROUPS * 32;
constant constexpr int PADDED = (HEAD_DIM + 7) / 8 * 8;
constant constexpr int PADDED_V = (HEAD_DIM_V + 7) / 8 * 8;
constant constexpr int STRIDE = (PADDED > PADDED_V ? PADDED : PADDED_V) + 16 / int(sizeof(Element));
constant constexpr int SCORE_STRIDE = STREAMED + 16 / int(sizeof(Element));
constant constexpr int LANES_A_ROW = 4;

typedef simdgroup_matrix<Element, 8, 8> Fragment;

// Rows [0, valid) of a matrix of `columns` into threadgroup memory, zeros around them.
inline void copy_rows(threadgroup Element* tile, const device Element* first, long stride, int rows,
                      int valid, int columns, uint thread_index) {
  for (int index = int(thread_index); index < rows * STRIDE; index += THREADS) {
    const int row = index / STRIDE, column = index % STRIDE;
    const bool exists = row < valid && column < columns;
    tile[index] = exists ? first[long(row) * stride + column] : Element(0.0f);
  }
}

[[kernel, max_total_threads_per_threadgroup(THREADS)]] void attention_plain(
    ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
    uint thread_index [[thread_index_in_threadgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]]) {
  threadgroup Element q_tile[OWNED * STRIDE];
  threadgroup Element kv_tile[STREAMED * STRIDE];
  threadgroup Element scores[SIMDGROUPS][8 * SCORE_STRIDE];
  threadgroup Element diagonal[SIMDGROUPS][64];

  const Operands operands = ATTENTION_OPERANDS;
  const int head = int(position.y), head_k = head / int(params.heads_per_kv_head);
  const Sequence sequence = Sequence::load(params, operands, int(position.z));
  const int block = int(position.x) * OWNED;
  if (block >= sequence.q_length) return;

  const Mask mask = Mask::of(params, sequence);
  const Score score = Score::of(params, scalars, operands, sequence, head);
  const device Element* q = operands.q + long(head) * params.q_stride_head +
                            sequence.q_offset(params.q_stride_batch, params.q_stride_row, block);
  copy_rows(q_tile, q, params.q_stride_row, OWNED, sequence.q_length - block, HEAD_DIM,
            thread_index);

  // Four lanes share a row, with a quarter of the block's keys each.
  const int own_row = int(lane) / LANES_A_ROW, row = block + int(simdgroup) * 8 + own_row;
  const int quarter = int(lane) % LANES_A_ROW;
  threadgroup Element* own_scores = scores[simdgroup];
  OnlineSoftmax softmax = OnlineSoftmax::start(operands, head, LANES_A_ROW);
  Fragment output[PADDED_V / 8];
  for (int f = 0; f < PADDED_V / 8; ++f)
    output[f] = make_filled_simdgroup_matrix<Element, 8, 8>(Element(0.0f));
  for (int i = int(lane); i < 64; i += 32) diagonal[simdgroup][i] = Element(0.0f);

  const int key_end = mask.key_end(block + OWNED - 1);
  for (int key = mask.key_begin(block) / STREAMED * STREAMED; key < key_end; key += STREAMED) {
    const int valid = sequence.k_length - key;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    copy_rows(kv_tile,
              operands.k + long(head_k) * params.k_stride_head +
                  sequence.k_offset(params.k_stride_batch, params.k_stride_row, key),
              params.k_stride_row, STREAMED, valid, HEAD_DIM, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    for (int j = 0; j < STREAMED / 8; ++j) {
      Fragment sum = make_filled_simdgroup_matrix<Element, 8, 8>(Element(0.0f));
      for (int d = 0; d < PADDED; d += 8) {
        Fragment left, right;
        simdgroup_load(left, q_tile + int(simdgroup) * 8 * STRIDE + d, STRIDE);
        simdgroup_load(right, kv_tile + j * 8 * STRIDE + d, STRIDE, ulong2(0, 0), true);
        simdgroup_multiply_accumulate(sum, left, right, sum);
      }
      simdgroup_store(sum, own_scores + j * 8, SCORE_STRIDE);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);

    threadgroup Element* row_scores = own_scores + own_row * SCORE_STRIDE;
    float logits[STREAMED / LANES_A_ROW], block_max = MASKED_LOG2;
    for (int i = 0; i < STREAMED / LANES_A_ROW; ++i) {
      const int column = quarter + i * LANES_A_ROW;
      logits[i] = mask.keeps(row, key + column)
                      ? score.logit_log2(float(row_scores[column]), row, key + column)
                      : MASKED_LOG2;
      block_max = max(block_max, logits[i]);
    }
    block_max = max(block_max, simd_shuffle_xor(block_max, ushort(1)));
    block_max = max(block_max, simd_shuffle_xor(block_max, ushort(2)));
    const float factor = softmax.rescale(block_max);
    for (int i = 0; i < STREAMED / LANES_A_ROW; ++i)
      row_scores[quarter + i * LANES_A_ROW] = Element(softmax.probability(logits[i]));
    if (quarter == 0) diagonal[simdgroup][own_row * 9] = Element(factor);

    threadgroup_barrier(mem_flags::mem_threadgroup);
    copy_rows(kv_tile,
              operands.v + long(head_k) * params.v_stride_head +
                  sequence.k_offset(params.v_stride_batch, params.v_stride_row, key),
              params.v_stride_row, STREAMED, valid, HEAD_DIM_V, thread_index);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    Fragment factors;
    simdgroup_load(factors, diagonal[simdgroup], 8);
    for (int f = 0; f < PADDED_V / 8; ++f) {
      Fragment scaled;
      simdgroup_multiply(scaled, factors, output[f]);
      output[f] = scaled;
      for (int j = 0; j < STREAMED / 8; ++j) {
        Fragment left, right;
        simdgroup_load(left, own_scores + j * 8, SCORE_STRIDE);
        simdgroup_load(right, kv_tile + j * 8 * STRIDE + f * 8, STRIDE);
        simdgroup_multiply_accumulate(output[f], left, right, output[f]);
      }
    }
  }

  softmax.row_sum += simd_shuffle_xor(softmax.row_sum, ushort(1));
  softmax.row_sum += simd_shuffle_xor(softmax.row_sum, ushort(2));
  threadgroup Element* own_rows = q_tile + int(simdgroup) * 8 * STRIDE;  // Q has done its part
  for (int f = 0; f < PADDED_V / 8; ++f) simdgroup_store(output[f], own_rows + f * 8, STRIDE);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  if (row >= sequence.q_length) return;
  device Element* o_row = output_row(params, operands, sequence, head, row);
  for (int d = quarter; d < HEAD_DIM_V; d += LANES_A_ROW)
    o_row[d] = Element(float(own_rows[own_row * STRIDE + d]) * softmax.inverse_sum());
  if (quarter == 0) store_lse(params, operands, sequence, head, row, softmax.lse());
}
