// The place of a row and head among floats of the layout of lse.
inline long row_index(constant AttentionParams& params, const thread Sequence& sequence, int head,
                      int row) {
  return sequence.q_offset(params.lse_stride_batch, 1, row) + long(head) * params.lse_stride_head;
}

// What backward keeps of a query row's softmax. Rows past the end, and rows without a normaliser,
// have no probability anywhere.
struct RowStatistics {
  float lse_log2;
  float delta;  // sum of o * grad_o, less the gradient of lse

  static RowStatistics load(constant AttentionParams& params, const thread Operands& operands,
                            const thread Sequence& sequence, int head, int row) {
    if (row >= sequence.q_length) return {-MASKED_LOG2, 0.0f};
    const long index =
        sequence.q_offset(params.lse_stride_batch, 1, row) + long(head) * params.lse_stride_head;
    const float lse_log2 = operands.lse[index] * M_LOG2E_F;
    return {lse_log2 > MASKED_LOG2 ? lse_log2 : -MASKED_LOG2, operands.delta[index]};
  }
};

// One pair of a query row and a key: its probability with dropout, which weighs v, and the
// gradients of its logit and of its product (FlashAttention-2, Dao 2023, algorithm 2). All are 0 of
// a pair that is not kept, whatever lies there.
struct Pair {
  float weight;
  float grad_logit;
  float grad_product;

  static Pair of(float product, float grad_p, bool kept, const thread RowStatistics& statistics,
                 const thread Score& score, float dropout_weight, int row, int key) {
    if (!kept) return {0.0f, 0.0f, 0.0f};
    const float p = fast::exp2(score.logit_log2(product, row, key) - statistics.lse_log2);
    const float grad_logit = p * (grad_p * dropout_weight - statistics.delta);
    return {p * dropout_weight, grad_logit, grad_logit * score.derivative(product)};
  }
};
