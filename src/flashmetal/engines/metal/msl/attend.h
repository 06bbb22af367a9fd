// One simdgroup's query rows of a tile: which query and head each belongs to. Decoding packs the
// heads of a group, head by head within a query; otherwise all rows are of one head.
struct TileRows {
  int first;  // of the simdgroup
  Score scores[PACKS_HEADS ? ROW_GROUPS : 1];

  static int query_of(int row) { return PACKS_HEADS ? row / GROUP : row; }
  int row(int i, Lane lane) const thread { return first + i * 8 + lane.row; }
  int query(int i, Lane lane) const thread { return query_of(row(i, lane)); }
  int last_query() const thread { return query_of(first + ROWS - 1); }
  const thread Score& score(int i) const thread { return scores[PACKS_HEADS ? i : 0]; }
};

// Turns products into probabilities and takes them into the running softmax of each row.
inline void update(thread Scores& scores, thread OnlineSoftmax* softmax,
                   thread Accumulator<HEAD_DIM_V>& output, const thread TileRows& rows,
                   const thread Mask& mask, const thread Dropout& dropout, int first_key,
                   uint hidden, Lane lane) {
  const bool whole =
      hidden == 0 && mask.keeps_all(TileRows::query_of(rows.first), rows.last_query(), first_key,
                                    first_key + STREAMED - 1);
#pragma clang loop unroll(full)
  for (int i = 0; i < ROW_GROUPS; ++i) {
    const int query = rows.query(i, lane);
    float block_max = MASKED_LOG2;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_GROUPS; ++j)
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int column = j * 8 + lane.column + e, key = first_key + column;
        const bool kept = whole || (mask.keeps(query, key) && !(hidden >> column & 1));
        const float product = scores.get(i, j, e);
        const float logit_log2 = kept ? rows.score(i).logit_log2(product, query, key) : MASKED_LOG2;
        scores.set(i, j, e, logit_log2);
        block_max = max(block_max, logit_log2);
      }

    output.scale_rows(i, softmax[i].rescale(row_max(block_max)));
    uint4 drawn = 0;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_GROUPS; ++j) {
      if (HAS_DROPOUT && j % 4 == 0) drawn = dropout.draw(query, first_key + j * 8 + lane.column);
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const float logit_log2 = scores.get(i, j, e);
        float p = softmax[i].probability(logit_log2);
        if (HAS_DROPOUT) p *= dropout.weight(drawn, first_key + j * 8 + lane.column + e);
        scores.set(i, j, e, p);
      }
    }
  }
}
