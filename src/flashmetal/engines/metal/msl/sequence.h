// Where a threadgroup stands in the grid of a call, of which its launch may be a part.
inline int3 place_in_grid(constant AttentionParams& params, uint3 position) {
  return int3(position) + int3(int(params.first_x), int(params.first_y), int(params.first_z));
}

// Where one sequence lives. Dense batches, packed (varlen) ones and pages differ only here: a
// packed batch has batch strides of zero and begins at cu_seqlens; with pages, k and v have pages
// for batches.
struct Sequence {
  int batch;
  int q_begin, q_length;
  int k_begin, k_length;
  int k_rows;               // of the tensors; seqused_k may use fewer
  int k_hidden;             // keys of the left padding
  const device int* pages;  // of this sequence, -1 for none

  static Sequence load(constant AttentionParams& params, const thread Operands& operands,
                       int batch) {
    Sequence sequence = {batch, 0, int(params.seqlen_q), 0, int(params.seqlen_k), 0, 0, nullptr};
    if (IS_VARLEN) {
      sequence.q_begin = operands.cu_seqlens_q[batch];
      sequence.q_length = operands.cu_seqlens_q[batch + 1] - sequence.q_begin;
    }
    if (IS_VARLEN && !HAS_PAGES) {
      sequence.k_begin = operands.cu_seqlens_k[batch];
      sequence.k_length = operands.cu_seqlens_k[batch + 1] - sequence.k_begin;
    }
    sequence.k_rows = sequence.k_length;
    if (HAS_SEQUSED_K) sequence.k_length = clamp(operands.seqused_k[batch], 0, sequence.k_length);
    if (HAS_LEFTPAD_K) sequence.k_hidden = max(operands.leftpad_k[batch], 0);
    if (HAS_PAGES) sequence.pages = operands.block_table + long(batch) * params.pages_per_sequence;
    return sequence;
  }

  // Query row i stands at key position i + diagonal: both sequences end together.
  int diagonal() const thread { return k_length - q_length; }

  // The page of a key below k_length, as k_offset takes it; -1 if the key is hidden.
  int page(int key) const thread {
    if (HAS_LEFTPAD_K && key < k_hidden) return -1;
    return HAS_PAGES ? pages[key / PAGE_SIZE] : 0;
  }

  long q_offset(long stride_batch, long stride_row, int row) const thread {
    return long(batch) * stride_batch + (long(q_begin) + long(row)) * stride_row;
  }
  long k_offset(long stride_batch, long stride_row, int page, int key) const thread {
    if (HAS_PAGES) return long(page) * stride_batch + long(key % PAGE_SIZE) * stride_row;
    return k_offset(stride_batch, stride_row, key);
  }
  long k_offset(long stride_batch, long stride_row, int key) const thread {
    return long(batch) * stride_batch + (long(k_begin) + long(key)) * stride_row;
  }
};
