// New rows into a cache of keys and values, and the queries that go with them: rotated, quantised,
// stored where the block table says, in one launch. One simdgroup a row and head; its lanes hold
// elements lane, lane + 32, ..., so that a group of 32 that shares an int4 scale is one element
// each.
constant constexpr int INT8 = 1, FP8 = 2, INT4 = 3;
constant constexpr int HALF_ROTARY = ROTARY_DIM / 2;

// Element d of a row, rotated (Su et al., 2021) by the angles of one position and rounded.
inline float rotated(const device Element* row, int d, const device Element* cos_row,
                     const device Element* sin_row) {
#pragma METAL fp contract(off)
  if (d >= ROTARY_DIM) return float(row[d]);
  const int pair = INTERLEAVED ? d / 2 : d % max(HALF_ROTARY, 1);
  const bool second = INTERLEAVED ? d % 2 == 1 : d >= HALF_ROTARY;
  const int first = INTERLEAVED ? 2 * pair : pair;
  const float a = float(row[first]), b = float(row[first + (INTERLEAVED ? 1 : HALF_ROTARY)]);
  const float cosine = float(cos_row[pair]), sine = float(sin_row[pair]);
  const float x = second ? a * sine : a * cosine, y = second ? b * cosine : b * sine;
  return float(Element(second ? x + y : x - y));
}

// float8_e4m3fn of a magnitude up to 448, to nearest even.
inline uchar fp8_code(float x) {
  const float magnitude = abs(x);
  const uchar sign = x < 0.0f ? 0x80 : 0;
  if (isnan(x)) return 0x7f;
  if (magnitude < 0.015625f)
    return sign | uchar(rint(magnitude * 512.0f));  // below 2^-6: subnormal
  uint bits = as_type<uint>(magnitude);
  bits += 0x7ffffu + (bits >> 20 & 1u);
  return sign | uchar((bits >> 20) - (120u << 3));
}

// The larger magnitude, and the largest of all lanes: NaN if there is one, which max would drop.
inline float larger(float a, float b) { return isnan(a) || a > b ? a : b; }
inline float simd_largest(float a) { return simd_any(isnan(a)) ? NAN : simd_max(a); }

// A row of a cache, or the scales of one.
template <typename Element>
struct Stored {
  device Element* first;
  long stride;

  device Element& operator[](int i) const thread { return first[i * stride]; }
};

// Stores one row of DIM values in a format of the cache; `values` are the lane's elements.
template <int FORMAT, int DIM, typename Code>
inline void store(const thread float* values,  // [(DIM + 31) / 32]
                  Stored<Code> codes, Stored<float> scales, uint lane) {
  constexpr int TURNS = (DIM + 31) / 32;
  float largest = 0.0f;
  if (FORMAT == INT8 || FORMAT == FP8) {
    for (int turn = 0; turn < TURNS; ++turn) largest = larger(abs(values[turn]), largest);
    largest = simd_largest(largest);
  }
  constexpr float MOST = FORMAT == INT8 ? 127.0f : FORMAT == FP8 ? 448.0f : 7.0f;

  for (int turn = 0; turn < TURNS; ++turn) {
    const int d = turn * 32 + int(lane);
    if (FORMAT == INT4) largest = simd_largest(abs(values[turn]));
    const float scale = largest / MOST;
    const float code = scale > 0.0f && !isinf(scale) ? values[turn] / scale : 0.0f;
    if (FORMAT == INT4) {
      const uint nibble = uint(int(rint(code)) + 8), next = simd_shuffle_xor(nibble, ushort(1));
      if (lane % 2 == 0) codes[d / 2] = Code(nibble | next << 4);
      if (lane == 0) scales[turn] = scale;
      continue;
    }
    if (d >= DIM) continue;
    if (FORMAT == INT8)
      codes[d] = Code(int(rint(code)));
    else if (FORMAT == FP8)
      codes[d] = Code(fp8_code(clamp(code, -448.0f, 448.0f)));
    else
      codes[d] = Code(values[turn]);
    if ((FORMAT == INT8 || FORMAT == FP8) && d == 0) scales[0] = scale;
  }
}

kernel void cache_append(ATTENTION_BINDINGS, uint3 position [[threadgroup_position_in_grid]],
                         uint simdgroup [[simdgroup_index_in_threadgroup]],
                         uint simdgroups [[simdgroups_per_threadgroup]],
                         uint lane [[thread_index_in_simdgroup]]) {
  const Operands operands = ATTENTION_OPERANDS;
  const int row = int(position.x * simdgroups + simdgroup), batch = int(position.z);
  const bool is_query = position.y >= uint(params.heads_k);
  const int head = int(position.y) - (is_query ? int(params.heads_k) : 0);

  const bool packed = is_query ? IS_PACKED_Q : IS_PACKED_NEW;
  const device int* starts = is_query ? operands.cu_seqlens_q : operands.cu_seqlens_new;
  const long begin = packed ? long(starts[batch]) : 0;
  const long rows = is_query ? params.seqlen_q : params.seqlen_new;
  if (row >= (packed ? long(starts[batch + 1]) - begin : rows)) return;

  const int before = operands.cache_seqlens[batch];
  const int start = HAS_ROTARY_SEQLENS ? operands.rotary_seqlens[batch] : before;
  const long angle = long(start) + (is_query && !ROTATE_ROWS ? 0 : row);
  const device Element* cos_row = operands.cos + angle * params.cos_stride;
  const device Element* sin_row = operands.sin + angle * params.sin_stride;

  if (is_query) {
    const device Element* q = operands.q + batch * params.q_stride_batch +
                              (begin + row) * params.q_stride_row + head * params.q_stride_head;
    const long place = (packed ? 0 : batch * params.seqlen_q) + begin + row;
    device Element* q_out = operands.q_out + (place * params.heads_q + head) * HEAD_DIM;
    for (int d = int(lane); d < HEAD_DIM; d += 32)
      q_out[d] = Element(rotated(q, d, cos_row, sin_row));
    return;
  }

  const device Element* k_new = operands.k_new + batch * params.k_new_stride_batch +
                                (begin + row) * params.k_new_stride_row +
                                head * params.k_new_stride_head;
  const device Element* v_new = operands.v_new + batch * params.v_new_stride_batch +
                                (begin + row) * params.v_new_stride_row +
                                head * params.v_new_stride_head;
  long page = batch, place = before + row;
  if (place < 0 || place >= params.capacity) return;
  if (HAS_PAGES) {
    page = operands.block_table[batch * params.pages_per_sequence + place / PAGE_SIZE];
    place %= PAGE_SIZE;
  }
  if (page < 0) return;
  float k[(HEAD_DIM + 31) / 32] = {}, v[(HEAD_DIM_V + 31) / 32] = {};
  for (int d = int(lane); d < HEAD_DIM; d += 32) k[d / 32] = rotated(k_new, d, cos_row, sin_row);
  for (int d = int(lane); d < HEAD_DIM_V; d += 32) v[d / 32] = float(v_new[d]);
  const Stored<KeyCode> k_codes = {operands.k_cache + page * params.k_stride_batch +
                                       place * params.k_stride_row + head * params.k_stride_head,
                                   params.k_stride_element};
  const Stored<ValueCode> v_codes = {operands.v_cache + page * params.v_stride_batch +
                                         place * params.v_stride_row + head * params.v_stride_head,
                                     params.v_stride_element};
  const Stored<float> k_scales = {operands.k_scale + page * params.k_scale_stride_batch +
                                      place * params.k_scale_stride_row +
                                      head * params.k_scale_stride_head,
                                  params.k_scale_stride_element};
  const Stored<float> v_scales = {operands.v_scale + page * params.v_scale_stride_batch +
                                      place * params.v_scale_stride_row +
                                      head * params.v_scale_stride_head,
                                  params.v_scale_stride_element};
  store<K_FORMAT, HEAD_DIM>(k, k_codes, k_scales, lane);
  store<V_FORMAT, HEAD_DIM_V>(v, v_codes, v_scales, lane);
}
