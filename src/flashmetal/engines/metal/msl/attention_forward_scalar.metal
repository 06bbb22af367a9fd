// Attention forward, one thread a query row: the debugging baseline. It shares every rule with the
// tile kernel (sequence, mask, score, softmax, epilogue) and none of its loop structure.
kernel void attention_forward_scalar(ATTENTION_BINDINGS,
                                     uint3 position [[threadgroup_position_in_grid]],
                                     uint thread_index [[thread_index_in_threadgroup]],
                                     uint3 threads [[threads_per_threadgroup]]) {
  const Operands operands = ATTENTION_OPERANDS;
  const int3 place = place_in_grid(params, position);
  const int row = place.x * int(threads.x) + int(thread_index), head = place.y;
  const int head_k = head / int(params.heads_per_kv_head);
  const Sequence sequence = Sequence::load(params, operands, place.z);
  if (row >= sequence.q_length) return;

  const Mask mask = Mask::of(params, sequence);
  const Score score = Score::of(params, scalars, operands, sequence, head);
  const Dropout dropout = Dropout::of(params, scalars, operands, sequence.batch, head);
  const device Element* q = operands.q + long(head) * params.q_stride_head +
                            sequence.q_offset(params.q_stride_batch, params.q_stride_row, row);
  OnlineSoftmax softmax = OnlineSoftmax::start(operands, head, 1);
  float o[HEAD_DIM_V] = {};

  const Keys keys = keys_of(params, operands, head_k);
  const Values values = values_of(params, operands, head_k);
  for (int key = mask.key_begin(row); key < mask.key_end(row); ++key) {
    const int page = sequence.page(key);
    if (page < 0) continue;
    const device KeyCode* k = keys.row(sequence, page, key);
    const device ValueCode* v = values.row(sequence, page, key);
    float product = 0.0f;
    for (int d = 0; d < HEAD_DIM; ++d)
      product =
          fma(float(q[d]), float(keys.element(k, d, keys.scale(sequence, page, key, d))), product);
    const float logit_log2 = score.logit_log2(product, row, key);
    const float factor = softmax.rescale(logit_log2);
    float p = softmax.probability(logit_log2);
    if (HAS_DROPOUT) p *= dropout.weight(dropout.draw(row, key), key);
    for (int d = 0; d < HEAD_DIM_V; ++d)
      o[d] =
          fma(p, float(values.element(v, d, values.scale(sequence, page, key, d))), factor * o[d]);
  }

  device Element* o_row = output_row(params, operands, sequence, head, row);
  for (int d = 0; d < HEAD_DIM_V; ++d) o_row[d] = Element(o[d] * softmax.inverse_sum());
  store_lse(params, operands, sequence, head, row, softmax.lse());
}
