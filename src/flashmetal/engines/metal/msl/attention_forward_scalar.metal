// Attention forward, one thread a query row: the debugging baseline. It shares every rule with the
// tile kernel (sequence, mask, score, softmax, epilogue) and none of its loop structure.
kernel void attention_forward_scalar(ATTENTION_BINDINGS,
                                     uint3 position [[thread_position_in_grid]]) {
  const Operands operands = ATTENTION_OPERANDS;
  const int row = int(position.x), head = int(position.y);
  const int head_k = head / int(params.heads_per_kv_head);
  const Sequence sequence = Sequence::load(params, operands, int(position.z));
  if (row >= sequence.q_length) return;

  const Mask mask = Mask::of(params, sequence);
  const Score score = Score::of(params, scalars, operands, sequence, head);
  const Dropout dropout = Dropout::of(params, scalars, operands, sequence.batch, head);
  const device Element* q = operands.q + long(head) * params.q_stride_head +
                            sequence.q_offset(params.q_stride_batch, params.q_stride_row, row);
  OnlineSoftmax softmax = OnlineSoftmax::start(operands, head, 1);
  float o[HEAD_DIM_V] = {};

  for (int key = mask.key_begin(row); key < mask.key_end(row); ++key) {
    const device Element* k = operands.k + long(head_k) * params.k_stride_head +
                              sequence.k_offset(params.k_stride_batch, params.k_stride_row, key);
    const device Element* v = operands.v + long(head_k) * params.v_stride_head +
                              sequence.k_offset(params.v_stride_batch, params.v_stride_row, key);
    float product = 0.0f;
    for (int d = 0; d < HEAD_DIM; ++d) product = fma(float(q[d]), float(k[d]), product);
    const float logit_log2 = score.logit_log2(product, row, key);
    const float factor = softmax.rescale(logit_log2);
    float p = softmax.probability(logit_log2);
    if (HAS_DROPOUT) p *= dropout.weight(dropout.draw(row, key), key);
    for (int d = 0; d < HEAD_DIM_V; ++d) o[d] = fma(p, float(v[d]), factor * o[d]);
  }

  device Element* o_row = output_row(params, operands, sequence, head, row);
  for (int d = 0; d < HEAD_DIM_V; ++d) o_row[d] = Element(o[d] * softmax.inverse_sum());
  store_lse(params, operands, sequence, head, row, softmax.lse());
}
