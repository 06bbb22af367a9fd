// The factors of two shares of a row when they become one.
struct Merge {
  float ours, theirs;
};

// Running softmax of one query row (Milakov and Gimelshein 2018), in base 2.
struct OnlineSoftmax {
  float row_max_log2;
  float row_sum;  // of the probabilities this thread has seen; a row is shared by some threads

  // A sink is a key without a value: it enters as the first maximum, with weight one in all.
  static OnlineSoftmax start(const thread Operands& operands, int head, int threads_per_row) {
    if (HAS_SINKS) return {operands.sinks[head] * M_LOG2E_F, 1.0f / float(threads_per_row)};
    return empty();
  }
  static OnlineSoftmax empty() { return {MASKED_LOG2, 0.0f}; }

  // Takes in a block's maximum; returns the factor for everything accumulated so far.
  float rescale(float block_max_log2) thread {
    const float before = row_max_log2;
    row_max_log2 = max(before, block_max_log2);
    const float factor = fast::exp2(before - reference_log2());
    row_sum *= factor;
    return factor;
  }

  // Takes in another share of the same row.
  Merge merge(OnlineSoftmax other) thread {
    const float ours = rescale(other.row_max_log2);
    const float theirs = fast::exp2(other.row_max_log2 - reference_log2());
    row_sum += other.row_sum * theirs;
    return {ours, theirs};
  }

  float probability(float logit_log2) thread {
    const float p = fast::exp2(logit_log2 - reference_log2());
    row_sum += p;
    return p;
  }

  // A row that has seen no key yet takes its exponents against 0, so all of them vanish.
  float reference_log2() const thread { return row_max_log2 > MASKED_LOG2 ? row_max_log2 : 0.0f; }

  // With row_sum complete: the weight of the accumulated output, and the natural-log normaliser.
  float inverse_sum() const thread { return row_sum == 0.0f ? 0.0f : 1.0f / row_sum; }
  float lse() const thread {
    return row_sum == 0.0f ? -INFINITY : (row_max_log2 + precise::log2(row_sum)) * M_LN2_F;
  }
};
