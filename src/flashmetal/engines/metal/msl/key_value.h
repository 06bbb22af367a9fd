// What the keys and values of one head are made of: elements, or codes that times a scale stand for
// them. They become elements in registers, on their way to a fragment or to threadgroup memory.
constant constexpr int DENSE = 0, INT8 = 1, FP8 = 2, INT4 = 3;
constant constexpr int INT4_GROUP = 32;  // elements of a row that share a scale

template <typename T, int N>
struct alignas(N * sizeof(T)) Packed {
  T values[N];
};

// float8_e4m3fn is a half without its upper exponent bits: 2^8 makes up for the bias.
inline float fp8_value(uchar code) {
  const ushort bits = ushort((code & 0x80) << 8 | (code & 0x7f) << 7);
  return (code & 0x7f) == 0x7f ? NAN : float(as_type<half>(bits)) * 256.0f;
}

// The keys, or the values, of one sequence and kv head. LOAD elements lie aligned side by side.
template <typename Code, int FORMAT, int DIM, int LOAD>
struct Stored {
  static constant constexpr int WIDTH = LOAD;
  const device Code* codes;
  const device float* scales;
  long stride_batch, stride_row;
  long scale_stride_batch, scale_stride_row;

  // Codes a row of N elements has, from element d on.
  static constexpr int codes_of(int elements) { return FORMAT == INT4 ? elements / 2 : elements; }

  const device Code* row(const thread Sequence& sequence, int page, int key) const thread {
    return codes + sequence.k_offset(stride_batch, stride_row, page, key);
  }

  // The scale of the elements from d on; 1 if they are no codes.
  float scale(const thread Sequence& sequence, int page, int key, int d) const thread {
    if (FORMAT == DENSE) return 1.0f;
    const device float* of_key =
        scales + sequence.k_offset(scale_stride_batch, scale_stride_row, page, key);
    return of_key[FORMAT == INT4 ? d / INT4_GROUP : 0];
  }

  static Element element(const device Code* row, int d, float scale) {
    return value(row[codes_of(d)], d, scale);
  }

  // N elements of a row, from d on; what lies past DIM is zero.
  template <int N>
  static Packed<Element, N> elements(const device Code* row, int d, float scale) {
    constexpr int WIDTH = LOAD < N ? LOAD : N;
    Packed<Element, N> loaded = {};
#pragma clang loop unroll(full)
    for (int first = 0; first < N; first += WIDTH) {
      if (d + first >= DIM) continue;
      const Packed<Code, codes_of(WIDTH)> chunk =
          *(const device Packed<Code, codes_of(WIDTH)>*)(row + codes_of(d + first));
#pragma clang loop unroll(full)
      for (int i = 0; i < WIDTH; ++i)
        loaded.values[first + i] = value(chunk.values[codes_of(i)], i, scale);
    }
    return loaded;
  }

  // The element d of a row, from the code that holds it.
  static Element value(Code code, int d, float scale) {
    if (FORMAT == DENSE) return Element(code);
    if (FORMAT == INT8) return Element(float(code) * scale);
    if (FORMAT == FP8) return Element(fp8_value(uchar(code)) * scale);
    return Element(float((int(code) >> (d % 2 * 4) & 15) - 8) * scale);
  }
};

typedef Stored<KeyCode, K_FORMAT, HEAD_DIM, K_VECTOR> Keys;
typedef Stored<ValueCode, V_FORMAT, HEAD_DIM_V, V_VECTOR> Values;

inline Keys keys_of(constant AttentionParams& params, const thread Operands& operands, int head_k) {
  return {operands.k + long(head_k) * params.k_stride_head,
          operands.k_scale + long(head_k) * params.k_scale_stride_head,
          params.k_stride_batch,
          params.k_stride_row,
          params.k_scale_stride_batch,
          params.k_scale_stride_row};
}
inline Values values_of(constant AttentionParams& params, const thread Operands& operands,
                        int head_k) {
  return {operands.v + long(head_k) * params.v_stride_head,
          operands.v_scale + long(head_k) * params.v_scale_stride_head,
          params.v_stride_batch,
          params.v_stride_row,
          params.v_scale_stride_batch,
          params.v_scale_stride_row};
}
