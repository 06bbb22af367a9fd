// Where results go: o is contiguous [batch][row][head][HEAD_DIM_V], lse [batch][head][row]; packed
// batches have [row][head][HEAD_DIM_V] and [head][row] over all their rows.
inline device Element* output_row(constant AttentionParams& params, const thread Operands& operands,
                                  const thread Sequence& sequence, int head, int row) {
  const long row_stride = params.heads_q * HEAD_DIM_V;
  return operands.o + sequence.q_offset(params.o_stride_batch, row_stride, row) +
         long(head) * HEAD_DIM_V;
}

inline void store_lse(constant AttentionParams& params, const thread Operands& operands,
                      const thread Sequence& sequence, int head, int row, float lse) {
  operands.lse[sequence.q_offset(params.lse_stride_batch, 1, row) +
               long(head) * params.lse_stride_head] = lse;
}

// The place of a row and head among the shares that splits over keys leave, [split][row][head].
inline long partial_index(constant AttentionParams& params, const thread Sequence& sequence,
                          int split, int head, int row) {
  const long rows = params.lse_stride_batch / params.heads_q;  // of a dense sequence
  return split * params.rows_and_heads + sequence.q_offset(rows, 1, row) * params.heads_q + head;
}
