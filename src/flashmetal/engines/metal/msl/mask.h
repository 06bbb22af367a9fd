// A masked logit is a large negative number, not -inf: with fast math on, comparisons with
// infinities may be optimised away.
constant constexpr float MASKED_LOG2 = -1.0e38f;

// Which (query row, key) pairs are kept, and therefore which keys a range of rows has to visit, and
// which rows a range of keys. Test and ranges share one band, so they cannot disagree. Causal is
// window_right == 0.
struct Mask {
  int q_length, k_length, k_hidden, diagonal;
  int window_left, window_right;

  static Mask of(constant AttentionParams& params, const thread Sequence& sequence) {
    return {sequence.q_length,   sequence.k_length,       sequence.k_hidden,
            sequence.diagonal(), int(params.window_left), int(params.window_right)};
  }

  bool keeps(int row, int key) const thread {
    const int distance = key - (row + diagonal);
    bool kept = row < q_length && key < k_length;
    if (HAS_LEFTPAD_K) kept = kept && key >= k_hidden;
    if (HAS_WINDOW_LEFT) kept = kept && -distance <= window_left;
    if (HAS_WINDOW_RIGHT) kept = kept && distance <= window_right;
    return kept;
  }

  // Rows first_row .. last_row see no key outside [key_begin, key_end).
  int key_begin(int first_row) const thread {
    const int begin = HAS_LEFTPAD_K ? k_hidden : 0;
    return HAS_WINDOW_LEFT ? max(first_row + diagonal - window_left, begin) : begin;
  }
  int key_end(int last_row) const thread {
    return HAS_WINDOW_RIGHT ? clamp(last_row + diagonal + window_right + 1, 0, k_length) : k_length;
  }

  // Keys first_key .. last_key are seen by no row outside [row_begin, row_end).
  int row_begin(int first_key) const thread {
    return HAS_WINDOW_RIGHT ? max(first_key - diagonal - window_right, 0) : 0;
  }
  int row_end(int last_key) const thread {
    return HAS_WINDOW_LEFT ? clamp(last_key - diagonal + window_left + 1, 0, q_length) : q_length;
  }

  // True when no pair of these rows with keys first_key .. last_key needs the test.
  bool keeps_all(int first_row, int last_row, int first_key, int last_key) const thread {
    bool all = last_key < k_length;
    if (HAS_LEFTPAD_K) all = all && first_key >= k_hidden;
    if (HAS_BIAS) all = all && last_row < q_length;  // a bias has no rows past the end to read
    if (HAS_WINDOW_LEFT) all = all && first_key >= last_row + diagonal - window_left;
    if (HAS_WINDOW_RIGHT) all = all && last_key <= first_row + diagonal + window_right;
    return all;
  }
};
