// Dropout by Philox4x32-10 (Salmon et al. 2011), counted by position: forward, backward and every
// tile draw the same mask. One call serves the eight keys of a group of 32 that one lane of a
// fragment row holds: word w has keys 8 w + c (low half) and 8 w + c + 1, c the lane's column.
struct Dropout {
  uint2 key;
  uint offset, batch_head;
  uint threshold;  // of 65536; smaller draws are dropped
  float kept_weight;

  static Dropout of(constant AttentionParams& params, constant AttentionScalars& scalars,
                    const thread Operands& operands, int batch, int head) {
    if (!HAS_DROPOUT) return {};
    const ulong seed = ulong(operands.rng_state[0]), offset = ulong(operands.rng_state[1]);
    return {uint2(uint(seed), uint(seed >> 32) ^ uint(offset >> 32)), uint(offset),
            uint(batch) * uint(params.heads_q) + uint(head), uint(params.dropout_threshold),
            scalars.dropout_kept_weight};
  }

  uint4 draw(int row, int key_position) const thread {
    uint4 counter =
        uint4(uint(key_position / 32 * 4 + key_position % 8 / 2), uint(row), batch_head, offset);
    uint2 round_key = key;
    for (int round = 0; round < 10; ++round) {
      const uint2 low = counter.xz * uint2(0xD2511F53u, 0xCD9E8D57u);
      const uint2 high = mulhi(counter.xz, uint2(0xD2511F53u, 0xCD9E8D57u));
      counter =
          uint4(high.y ^ counter.y ^ round_key.x, low.y, high.x ^ counter.w ^ round_key.y, low.x);
      round_key += uint2(0x9E3779B9u, 0xBB67AE85u);
    }
    return counter;
  }

  // The factor of the probability at `key_position`, from the draw for its row and group.
  float weight(uint4 drawn, int key_position) const thread {
    const uint half_word = drawn[key_position % 32 / 8] >> (key_position % 2 * 16) & 0xffffu;
    return half_word < threshold ? 0.0f : kept_weight;
  }
};
