// How the lanes of a simdgroup hold matrices, whichever instructions multiply them. A threadgroup
// owns OWNED rows of some operands, and streams others, STREAMED rows at a time. Forward and dQ own
// queries and stream keys; dK and dV own keys and stream queries. TEAM simdgroups share ROWS owned
// rows where a head dimension is too long for one: each has a part of its columns.
//
// Rows and columns come in groups of eight. A lane holds one row of each group of rows, and of each
// group of columns two neighbours.

constant constexpr int ROW_GROUPS = ROWS / 8;
constant constexpr int STREAMED_GROUPS = STREAMED / 8;
constant constexpr int THREADS = SIMDGROUPS * 32;
constant constexpr int TEAMS = SIMDGROUPS / TEAM;
constant constexpr int OWNED = TEAMS * ROWS;
constant constexpr int WIDEST = 16 / int(sizeof(Element));

// Floats that a simdgroup passes to others, or to itself where fragments have an unknown layout.
constant constexpr int PARTS = TEAM > 1 ? PRODUCTS* ROWS* STREAMED : 0;
constant constexpr int FRAGMENT = 16 * 32;
constant constexpr int EXCHANGE = PARTS + (KNOWN_LAYOUT ? 0 : FRAGMENT);
constant constexpr int EXCHANGED = SIMDGROUPS * EXCHANGE > 0 ? SIMDGROUPS* EXCHANGE : 1;

// This lane's place in every group, and its simdgroup's part of the head dimensions.
struct Lane {
  int row, column;
  int part;
  int index;
  threadgroup float* exchange;  // its simdgroup's, [EXCHANGE]

  static Lane of(uint index, uint simdgroup, threadgroup float* exchange) {
    const int quad = int(index) / 4;
    return {(quad & 4) + (int(index) / 2) % 4, (quad & 2) * 2 + (int(index) % 2) * 2,
            int(simdgroup) % TEAM, int(index), exchange + int(simdgroup) * EXCHANGE};
  }
};

// A row is spread over the four lanes that differ in bits 0 and 3.
inline float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(8)));
}
inline float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(8));
}

// One simdgroup's products, to the others of its team and summed over all of them: in the same
// order by each, so that the sums are equal to the bit.
template <typename Products>
inline void give_part(const thread Products& products, int slot, Lane lane) {
  threadgroup float* mine = lane.exchange + slot * ROWS * STREAMED + lane.index;
#pragma clang loop unroll(full)
  for (int i = 0; i < ROW_GROUPS; ++i)
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_GROUPS; ++j)
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e)
        mine[((i * STREAMED_GROUPS + j) * 2 + e) * 32] = products.get(i, j, e);
}
template <typename Products>
inline void take_parts(thread Products& products, int slot, Lane lane) {
  const threadgroup float* first =
      lane.exchange - lane.part * EXCHANGE + slot * ROWS * STREAMED + lane.index;
#pragma clang loop unroll(full)
  for (int i = 0; i < ROW_GROUPS; ++i)
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_GROUPS; ++j)
#pragma clang loop unroll(full)
      for (int e = 0; e < 2; ++e) {
        const int element = ((i * STREAMED_GROUPS + j) * 2 + e) * 32;
        float sum = 0.0f;
#pragma clang loop unroll(full)
        for (int part = 0; part < TEAM; ++part)
          sum += part == lane.part ? products.get(i, j, e) : first[part * EXCHANGE + element];
        products.set(i, j, e, sum);
      }
}

// Sums products over the parts of each team. All threads come here, and a barrier before the next.
template <typename Products>
inline void add_parts(thread Products& products, Lane lane) {
  if (TEAM == 1) return;
  give_part(products, 0, lane);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  take_parts(products, 0, lane);
}
template <typename Products>
inline void add_parts(thread Products& products, thread Products& others, Lane lane) {
  if (TEAM == 1) return;
  give_part(products, 0, lane);
  give_part(others, 1, lane);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  take_parts(products, 0, lane);
  take_parts(others, 1, lane);
}
