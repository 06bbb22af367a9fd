// Where one sequence lives. Dense batches and packed (varlen) ones differ only here: a packed batch
// has batch strides of zero and begins at cu_seqlens.
struct Sequence {
  int batch;
  int q_begin, q_length;
  int k_begin, k_length;
  int k_rows;  // of the tensors; seqused_k may use fewer

  static Sequence load(constant AttentionParams& params, const thread Operands& operands,
                       int batch) {
    Sequence sequence = {batch, 0, int(params.seqlen_q), 0, int(params.seqlen_k), 0};
    if (IS_VARLEN) {
      sequence.q_begin = operands.cu_seqlens_q[batch];
      sequence.q_length = operands.cu_seqlens_q[batch + 1] - sequence.q_begin;
      sequence.k_begin = operands.cu_seqlens_k[batch];
      sequence.k_length = operands.cu_seqlens_k[batch + 1] - sequence.k_begin;
    }
    sequence.k_rows = sequence.k_length;
    if (HAS_SEQUSED_K) sequence.k_length = clamp(operands.seqused_k[batch], 0, sequence.k_length);
    return sequence;
  }

  // Query row i stands at key position i + diagonal: both sequences end together.
  int diagonal() const thread { return k_length - q_length; }

  long q_offset(long stride_batch, long stride_row, int row) const thread {
    return long(batch) * stride_batch + (long(q_begin) + long(row)) * stride_row;
  }
  long k_offset(long stride_batch, long stride_row, int row) const thread {
    return long(batch) * stride_batch + (long(k_begin) + long(row)) * stride_row;
  }
};
