// Tiles on simdgroup matrices. A simdgroup owns ROWS query rows; a fragment is 8x8 and each lane
// holds two neighbours of one of its rows: (row, column) and (row, column + 1).
//
// Which element of a head dimension a fragment's index stands for is free, as long as both operands
// of a product agree. It is chosen so that what a lane needs from W neighbouring fragments lies
// side by side in memory: every fragment load is one wide load, and K needs no transposed copy.
//   contraction (S = Q K^T): index i of fragment f in a strip of W stands for d = W * i + f
//   columns     (O = P V):   column c of fragment f in a strip of W stands for d = W * c + 2 * f
//                            (c even; c + 1 follows)

template <int N>
struct alignas(N * sizeof(Element)) Chunk {
  Element values[N];
};

typedef simdgroup_matrix<Element, 8, 8> OperandFragment;
typedef simdgroup_matrix<float, 8, 8> AccumulatorFragment;

constant constexpr int ROW_FRAGMENTS = ROWS / 8;
constant constexpr int KEY_FRAGMENTS = BLOCK_K / 8;
constant constexpr int D_FRAGMENTS = (HEAD_DIM + 7) / 8;
constant constexpr int DV_FRAGMENTS = (HEAD_DIM_V + 7) / 8;
constant constexpr int THREADS = SIMDGROUPS * 32;
constant constexpr int BLOCK_Q = SIMDGROUPS * ROWS;

// 32 bytes of padding: eight lanes that read 16 bytes each from four rows meet no bank twice.
constant constexpr int WIDEST = 16 / int(sizeof(Element));
constant constexpr int K_STRIDE = D_FRAGMENTS * 8 + 2 * WIDEST;
constant constexpr int V_STRIDE = DV_FRAGMENTS * 8 + 2 * WIDEST;

// Fragments in a strip: the largest power of two that divides their number, 16 bytes a load at
// most.
constexpr int strip_width(int fragments, int most) {
  return (fragments & -fragments) < most ? (fragments & -fragments) : most;
}
constant constexpr int D_STRIP = strip_width(D_FRAGMENTS, WIDEST);
constant constexpr int DV_STRIP = strip_width(DV_FRAGMENTS, WIDEST / 2);
constant constexpr int D_STRIPS = D_FRAGMENTS / D_STRIP;
constant constexpr int DV_STRIPS = DV_FRAGMENTS / DV_STRIP;

// This lane's place in every 8x8 fragment.
struct Lane {
  int row, column;

  static Lane of(uint index) {
    const int quad = int(index) / 4;
    return {(quad & 4) + (int(index) / 2) % 4, (quad & 2) * 2 + (int(index) % 2) * 2};
  }
};

// A fragment row is spread over the four lanes that differ in bits 0 and 3.
inline float row_max(float x) {
  x = max(x, simd_shuffle_xor(x, ushort(1)));
  return max(x, simd_shuffle_xor(x, ushort(8)));
}
inline float row_sum(float x) {
  x += simd_shuffle_xor(x, ushort(1));
  return x + simd_shuffle_xor(x, ushort(8));
}

// Copies rows [0, valid) of a head, BLOCK_K in all, into threadgroup memory. Missing rows and the
// columns that pad DIM to whole fragments become zero, so that 0 * garbage never makes a NaN.
template <int DIM, int STRIDE>
inline void stage(threadgroup Element* tile,  // [BLOCK_K][STRIDE]
                  const device Element* rows, long row_stride, int valid, uint thread_index) {
  constexpr int CHUNKS = (DIM + 7) / 8 * 8 / VECTOR;
#pragma clang loop unroll(full)
  for (int index = int(thread_index); index < BLOCK_K * CHUNKS; index += THREADS) {
    const int row = index / CHUNKS, column = index % CHUNKS * VECTOR;
    Chunk<VECTOR> chunk = {};
    if (row < valid && column < DIM)
      chunk = *(const device Chunk<VECTOR>*)(rows + long(row) * row_stride + column);
    *(threadgroup Chunk<VECTOR>*)(tile + row * STRIDE + column) = chunk;
  }
}

// Eight query rows by one strip of the head dimension, as left operands.
struct QueryStrip {
  OperandFragment fragments[D_STRIP];

  static QueryStrip load(const device Element* row, bool valid, int strip, Lane lane) {
    constexpr int WIDTH = VECTOR < D_STRIP ? VECTOR : D_STRIP;
    QueryStrip loaded;
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; ++side) {
#pragma clang loop unroll(full)
      for (int f = 0; f < D_STRIP; f += WIDTH) {
        const int d = (strip * 8 + lane.column + side) * D_STRIP + f;
        Chunk<WIDTH> chunk = {};
        if (valid && d < HEAD_DIM) chunk = *(const device Chunk<WIDTH>*)(row + d);
#pragma clang loop unroll(full)
        for (int i = 0; i < WIDTH; ++i)
          loaded.fragments[f + i].thread_elements()[side] = chunk.values[i];
      }
    }
    return loaded;
  }
};

// Eight keys by one strip of the head dimension, transposed: right operands of S = Q K^T.
struct KeyStrip {
  OperandFragment fragments[D_STRIP];

  static KeyStrip load(const threadgroup Element* k_tile, int key_fragment, int strip, Lane lane) {
    KeyStrip loaded;
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; ++side) {
      const int key = key_fragment * 8 + lane.column + side;
      const int d = (strip * 8 + lane.row) * D_STRIP;
      const Chunk<D_STRIP> chunk =
          *(const threadgroup Chunk<D_STRIP>*)(k_tile + key * K_STRIDE + d);
#pragma clang loop unroll(full)
      for (int f = 0; f < D_STRIP; ++f)
        loaded.fragments[f].thread_elements()[side] = chunk.values[f];
    }
    return loaded;
  }
};

// Eight keys by one strip of value columns: right operands of O += P V.
struct ValueStrip {
  OperandFragment fragments[DV_STRIP];

  static ValueStrip load(const threadgroup Element* v_tile, int key_fragment, int strip,
                         Lane lane) {
    ValueStrip loaded;
    const int key = key_fragment * 8 + lane.row;
    const int d = (strip * 8 + lane.column) * DV_STRIP;
    const Chunk<2 * DV_STRIP> chunk =
        *(const threadgroup Chunk<2 * DV_STRIP>*)(v_tile + key * V_STRIDE + d);
#pragma clang loop unroll(full)
    for (int f = 0; f < DV_STRIP; ++f) {
      loaded.fragments[f].thread_elements()[0] = chunk.values[2 * f];
      loaded.fragments[f].thread_elements()[1] = chunk.values[2 * f + 1];
    }
    return loaded;
  }
};

// [ROWS][HEAD_DIM]: kept in registers for the whole loop, or read again for each key block.
struct Queries {
  const device Element* rows[ROW_FRAGMENTS];  // this lane's row in each row fragment
  bool valid[ROW_FRAGMENTS];
  QueryStrip strips[QUERIES_IN_REGISTERS ? ROW_FRAGMENTS : 1][QUERIES_IN_REGISTERS ? D_STRIPS : 1];

  static Queries load(const device Element* first_row, long row_stride, int rows_left, Lane lane) {
    Queries loaded;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i) {
      const int row = i * 8 + lane.row;
      loaded.valid[i] = row < rows_left;
      loaded.rows[i] = first_row + long(row) * row_stride;
      if (QUERIES_IN_REGISTERS) {
#pragma clang loop unroll(full)
        for (int s = 0; s < D_STRIPS; ++s)
          loaded.strips[i][s] = QueryStrip::load(loaded.rows[i], loaded.valid[i], s, lane);
      }
    }
    return loaded;
  }

  QueryStrip strip(int i, int s, Lane lane) const thread {
    if (QUERIES_IN_REGISTERS) return strips[i][s];
    return QueryStrip::load(rows[i], valid[i], s, lane);
  }
};

// [ROWS][BLOCK_K] in fp32: products, then base-2 logits, then probabilities.
struct Scores {
  AccumulatorFragment fragments[ROW_FRAGMENTS][KEY_FRAGMENTS];

  // Q K^T
  static Scores multiply(const thread Queries& queries, const threadgroup Element* k_tile,
                         Lane lane) {
    Scores scores;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma clang loop unroll(full)
      for (int j = 0; j < KEY_FRAGMENTS; ++j)
        scores.fragments[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);

#pragma clang loop unroll(full)
    for (int s = 0; s < D_STRIPS; ++s) {
      QueryStrip q[ROW_FRAGMENTS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_FRAGMENTS; ++i) q[i] = queries.strip(i, s, lane);
#pragma clang loop unroll(full)
      for (int j = 0; j < KEY_FRAGMENTS; ++j) {
        const KeyStrip k = KeyStrip::load(k_tile, j, s, lane);
#pragma clang loop unroll(full)
        for (int f = 0; f < D_STRIP; ++f)
#pragma clang loop unroll(full)
          for (int i = 0; i < ROW_FRAGMENTS; ++i)
            simdgroup_multiply_accumulate(scores.fragments[i][j], q[i].fragments[f], k.fragments[f],
                                          scores.fragments[i][j]);
      }
    }
    return scores;
  }
};

// [ROWS][HEAD_DIM_V] in fp32.
struct Output {
  AccumulatorFragment fragments[ROW_FRAGMENTS][DV_FRAGMENTS];

  static Output zero() {
    Output output;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma clang loop unroll(full)
      for (int f = 0; f < DV_FRAGMENTS; ++f)
        output.fragments[i][f] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    return output;
  }

  void scale_rows(int i, float factor) thread {
#pragma clang loop unroll(full)
    for (int f = 0; f < DV_FRAGMENTS; ++f) {
      fragments[i][f].thread_elements()[0] *= factor;
      fragments[i][f].thread_elements()[1] *= factor;
    }
  }

  // += P V. The accumulator layout is the left operand's layout too: P never leaves registers.
  void accumulate(const thread Scores& p, const threadgroup Element* v_tile, Lane lane) thread {
#pragma clang loop unroll(full)
    for (int j = 0; j < KEY_FRAGMENTS; ++j) {
      OperandFragment left[ROW_FRAGMENTS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_FRAGMENTS; ++i) {
        AccumulatorFragment probabilities = p.fragments[i][j];
        left[i].thread_elements()[0] = Element(probabilities.thread_elements()[0]);
        left[i].thread_elements()[1] = Element(probabilities.thread_elements()[1]);
      }
#pragma clang loop unroll(full)
      for (int s = 0; s < DV_STRIPS; ++s) {
        const ValueStrip v = ValueStrip::load(v_tile, j, s, lane);
#pragma clang loop unroll(full)
        for (int f = 0; f < DV_STRIP; ++f)
#pragma clang loop unroll(full)
          for (int i = 0; i < ROW_FRAGMENTS; ++i) {
            thread AccumulatorFragment& o = fragments[i][s * DV_STRIP + f];
            simdgroup_multiply_accumulate(o, left[i], v.fragments[f], o);
          }
      }
    }
  }

  // Writes this lane's columns of row fragment i, each times `weight`, to its row of o.
  void store(int i, device Element* row, float weight, Lane lane) const thread {
    constexpr int WIDTH = HEAD_DIM_V % 8 == 0 && VECTOR >= 2 * DV_STRIP ? 2 * DV_STRIP : 1;
#pragma clang loop unroll(full)
    for (int s = 0; s < DV_STRIPS; ++s) {
      Element columns[2 * DV_STRIP];
#pragma clang loop unroll(full)
      for (int f = 0; f < DV_STRIP; ++f) {
        AccumulatorFragment o = fragments[i][s * DV_STRIP + f];
        columns[2 * f] = Element(o.thread_elements()[0] * weight);
        columns[2 * f + 1] = Element(o.thread_elements()[1] * weight);
      }
      const int d = (s * 8 + lane.column) * DV_STRIP;
#pragma clang loop unroll(full)
      for (int c = 0; c < 2 * DV_STRIP; c += WIDTH) {
        if (d + c >= HEAD_DIM_V) continue;
        Chunk<WIDTH> chunk;
#pragma clang loop unroll(full)
        for (int e = 0; e < WIDTH; ++e) chunk.values[e] = columns[c + e];
        *(device Chunk<WIDTH>*)(row + d + c) = chunk;
      }
    }
  }
};
