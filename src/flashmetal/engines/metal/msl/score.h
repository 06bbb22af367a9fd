// From the product q.k to a base-2 logit. The order is a contract: scale, softcap, bias, ALiBi;
// the mask comes after. log2(e) rides on each term's own constant, so it costs no operation.
struct Score {
  float multiplier;    // scale / softcap with a softcap, else scale * log2(e)
  float softcap_log2;  // softcap * log2(e)
  float slope_log2;    // ALiBi slope of this head * log2(e)
  int diagonal;
  const device BiasElement* bias;  // of this batch and head
  long bias_stride_query, bias_stride_key;

  static Score of(constant AttentionParams& params, constant AttentionScalars& scalars,
                  const thread Operands& operands, const thread Sequence& sequence, int head) {
    Score score = {scalars.multiplier,    scalars.softcap_log2, 0.0f,
                   sequence.diagonal(),   operands.bias,        params.bias_stride_query,
                   params.bias_stride_key};
    if (HAS_ALIBI)
      score.slope_log2 =
          operands.alibi_slopes[long(sequence.batch) * params.alibi_stride_batch + head] *
          M_LOG2E_F;
    if (HAS_BIAS)
      score.bias +=
          long(sequence.batch) * params.bias_stride_batch + long(head) * params.bias_stride_head;
    return score;
  }

  // What ALiBi's slope multiplies.
  float distance(int row, int key) const thread { return float(abs(row + diagonal - key)); }

  float logit_log2(float product, int row, int key) const thread {
    float logit = product * multiplier;
    if (HAS_SOFTCAP) logit = softcap_log2 * precise::tanh(logit);
    if (HAS_BIAS)
      logit = fma(float(bias[long(row) * bias_stride_query + long(key) * bias_stride_key]),
                  M_LOG2E_F, logit);
    if (HAS_ALIBI) logit -= slope_log2 * distance(row, key);
    return logit;
  }

  // d logit / d (scale * product): what the softcap's tanh leaves of a gradient.
  float derivative(float product) const thread {
    if (!HAS_SOFTCAP) return 1.0f;
    const float capped = precise::tanh(product * multiplier);
    return 1.0f - capped * capped;
  }
};
