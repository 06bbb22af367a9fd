// Tiles on simdgroup matrices. A threadgroup owns OWNED rows of some operands, ROWS a simdgroup,
// and streams others through threadgroup memory, STREAMED rows at a time. Forward and dQ own
// queries and stream keys; dK and dV own keys and stream queries. A fragment is 8x8 and each lane
// holds two neighbours of one of its rows: (row, column) and (row, column + 1).
//
// Which element of a head dimension a fragment's index stands for is free, as long as both operands
// of a product agree. It is chosen so that what a lane needs from W neighbouring fragments lies
// side by side in memory: every fragment load is one wide load, and nothing is stored transposed.
//   contraction (A B^T): index i of fragment f in a strip of W stands for d = W * i + f
//   columns     (S B):   column c of fragment f in a strip of W stands for d = W * c + 2 * f
//                        (c even; c + 1 follows)

template <int N>
struct alignas(N * sizeof(Element)) Chunk {
  Element values[N];
};

typedef simdgroup_matrix<Element, 8, 8> OperandFragment;
typedef simdgroup_matrix<float, 8, 8> AccumulatorFragment;

constant constexpr int ROW_FRAGMENTS = ROWS / 8;
constant constexpr int STREAMED_FRAGMENTS = STREAMED / 8;
constant constexpr int THREADS = SIMDGROUPS * 32;
constant constexpr int OWNED = SIMDGROUPS * ROWS;
constant constexpr int WIDEST = 16 / int(sizeof(Element));

// Fragments in a strip: the largest power of two that divides their number, 16 bytes a load at
// most.
constexpr int strip_width(int fragments, int most) {
  return (fragments & -fragments) < most ? (fragments & -fragments) : most;
}

// A head dimension cut into fragments and strips.
template <int DIM>
struct Cut {
  static constant constexpr int FRAGMENTS = (DIM + 7) / 8;
  // 32 bytes of padding: eight lanes that read 16 bytes each from four rows meet no bank twice.
  static constant constexpr int STRIDE = FRAGMENTS * 8 + 2 * WIDEST;
  static constant constexpr int STRIP = strip_width(FRAGMENTS, WIDEST);
  static constant constexpr int STRIPS = FRAGMENTS / STRIP;
  static constant constexpr int COLUMN_STRIP = strip_width(FRAGMENTS, WIDEST / 2);
  static constant constexpr int COLUMN_STRIPS = FRAGMENTS / COLUMN_STRIP;
};

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

// Copies rows [0, valid) of a head, STREAMED in all, into threadgroup memory. Missing rows and the
// columns that pad DIM to whole fragments become zero, so that 0 * garbage never makes a NaN.
template <int DIM>
inline void stage(threadgroup Element* tile,  // [STREAMED][Cut<DIM>::STRIDE]
                  const device Element* rows, long row_stride, int valid, uint thread_index) {
  constexpr int CHUNKS = Cut<DIM>::FRAGMENTS * 8 / VECTOR;
#pragma clang loop unroll(full)
  for (int index = int(thread_index); index < STREAMED * CHUNKS; index += THREADS) {
    const int row = index / CHUNKS, column = index % CHUNKS * VECTOR;
    Chunk<VECTOR> chunk = {};
    if (row < valid && column < DIM)
      chunk = *(const device Chunk<VECTOR>*)(rows + long(row) * row_stride + column);
    *(threadgroup Chunk<VECTOR>*)(tile + row * Cut<DIM>::STRIDE + column) = chunk;
  }
}

// Eight owned rows by one strip, as left operands of a contraction.
template <int DIM>
struct OwnedStrip {
  OperandFragment fragments[Cut<DIM>::STRIP];

  static OwnedStrip load(const device Element* row, bool valid, int strip, Lane lane) {
    constexpr int STRIP = Cut<DIM>::STRIP, WIDTH = VECTOR < STRIP ? VECTOR : STRIP;
    OwnedStrip loaded;
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; ++side) {
#pragma clang loop unroll(full)
      for (int f = 0; f < STRIP; f += WIDTH) {
        const int d = (strip * 8 + lane.column + side) * STRIP + f;
        Chunk<WIDTH> chunk = {};
        if (valid && d < DIM) chunk = *(const device Chunk<WIDTH>*)(row + d);
#pragma clang loop unroll(full)
        for (int i = 0; i < WIDTH; ++i)
          loaded.fragments[f + i].thread_elements()[side] = chunk.values[i];
      }
    }
    return loaded;
  }
};

// Eight streamed rows by one strip, transposed: right operands of a contraction.
template <int DIM>
struct TransposedStrip {
  OperandFragment fragments[Cut<DIM>::STRIP];

  static TransposedStrip load(const threadgroup Element* tile, int row_fragment, int strip,
                              Lane lane) {
    constexpr int STRIP = Cut<DIM>::STRIP;
    TransposedStrip loaded;
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; ++side) {
      const int row = row_fragment * 8 + lane.column + side;
      const int d = (strip * 8 + lane.row) * STRIP;
      const Chunk<STRIP> chunk =
          *(const threadgroup Chunk<STRIP>*)(tile + row * Cut<DIM>::STRIDE + d);
#pragma clang loop unroll(full)
      for (int f = 0; f < STRIP; ++f) loaded.fragments[f].thread_elements()[side] = chunk.values[f];
    }
    return loaded;
  }
};

// Eight streamed rows by one strip of columns: right operands of a sum over those rows.
template <int DIM>
struct ColumnStrip {
  OperandFragment fragments[Cut<DIM>::COLUMN_STRIP];

  static ColumnStrip load(const threadgroup Element* tile, int row_fragment, int strip, Lane lane) {
    constexpr int STRIP = Cut<DIM>::COLUMN_STRIP;
    ColumnStrip loaded;
    const int row = row_fragment * 8 + lane.row;
    const int d = (strip * 8 + lane.column) * STRIP;
    const Chunk<2 * STRIP> chunk =
        *(const threadgroup Chunk<2 * STRIP>*)(tile + row * Cut<DIM>::STRIDE + d);
#pragma clang loop unroll(full)
    for (int f = 0; f < STRIP; ++f) {
      loaded.fragments[f].thread_elements()[0] = chunk.values[2 * f];
      loaded.fragments[f].thread_elements()[1] = chunk.values[2 * f + 1];
    }
    return loaded;
  }
};

// [ROWS][DIM], owned: kept in registers for the whole loop, or read again for each streamed block.
template <int DIM>
struct Owned {
  const device Element* rows[ROW_FRAGMENTS];  // this lane's row in each row fragment
  bool valid[ROW_FRAGMENTS];
  OwnedStrip<DIM> strips[OWNED_IN_REGISTERS ? ROW_FRAGMENTS : 1]
                        [OWNED_IN_REGISTERS ? Cut<DIM>::STRIPS : 1];

  static Owned load(const device Element* first_row, long row_stride, int rows_left, Lane lane) {
    Owned loaded;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i) {
      const int row = i * 8 + lane.row;
      loaded.valid[i] = row < rows_left;
      loaded.rows[i] = first_row + long(row) * row_stride;
      if (OWNED_IN_REGISTERS) {
#pragma clang loop unroll(full)
        for (int s = 0; s < Cut<DIM>::STRIPS; ++s)
          loaded.strips[i][s] = OwnedStrip<DIM>::load(loaded.rows[i], loaded.valid[i], s, lane);
      }
    }
    return loaded;
  }

  OwnedStrip<DIM> strip(int i, int s, Lane lane) const thread {
    if (OWNED_IN_REGISTERS) return strips[i][s];
    return OwnedStrip<DIM>::load(rows[i], valid[i], s, lane);
  }
};

// [ROWS][STREAMED] in fp32: products, then what the kernel makes of them in place.
struct Scores {
  AccumulatorFragment fragments[ROW_FRAGMENTS][STREAMED_FRAGMENTS];

  static Scores zero() {
    Scores scores;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma clang loop unroll(full)
      for (int j = 0; j < STREAMED_FRAGMENTS; ++j)
        scores.fragments[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    return scores;
  }

  // owned tile^T
  template <int DIM>
  static Scores multiply(const thread Owned<DIM>& owned, const threadgroup Element* tile,
                         Lane lane) {
    Scores scores = zero();
#pragma clang loop unroll(full)
    for (int s = 0; s < Cut<DIM>::STRIPS; ++s) {
      OwnedStrip<DIM> left[ROW_FRAGMENTS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_FRAGMENTS; ++i) left[i] = owned.strip(i, s, lane);
#pragma clang loop unroll(full)
      for (int j = 0; j < STREAMED_FRAGMENTS; ++j) {
        const TransposedStrip<DIM> right = TransposedStrip<DIM>::load(tile, j, s, lane);
#pragma clang loop unroll(full)
        for (int f = 0; f < Cut<DIM>::STRIP; ++f)
#pragma clang loop unroll(full)
          for (int i = 0; i < ROW_FRAGMENTS; ++i)
            simdgroup_multiply_accumulate(scores.fragments[i][j], left[i].fragments[f],
                                          right.fragments[f], scores.fragments[i][j]);
      }
    }
    return scores;
  }
};

// [ROWS][DIM] in fp32.
template <int DIM>
struct Accumulator {
  AccumulatorFragment fragments[ROW_FRAGMENTS][Cut<DIM>::FRAGMENTS];

  static Accumulator zero() {
    Accumulator accumulator;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i)
#pragma clang loop unroll(full)
      for (int f = 0; f < Cut<DIM>::FRAGMENTS; ++f)
        accumulator.fragments[i][f] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    return accumulator;
  }

  void scale_rows(int i, float factor) thread {
#pragma clang loop unroll(full)
    for (int f = 0; f < Cut<DIM>::FRAGMENTS; ++f) {
      fragments[i][f].thread_elements()[0] *= factor;
      fragments[i][f].thread_elements()[1] *= factor;
    }
  }

  // += weights tile. The accumulator layout is the left operand's too: weights stay in registers.
  void accumulate(const thread Scores& weights, const threadgroup Element* tile, Lane lane) thread {
    constexpr int STRIP = Cut<DIM>::COLUMN_STRIP;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_FRAGMENTS; ++j) {
      OperandFragment left[ROW_FRAGMENTS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_FRAGMENTS; ++i) {
        AccumulatorFragment weight = weights.fragments[i][j];
        left[i].thread_elements()[0] = Element(weight.thread_elements()[0]);
        left[i].thread_elements()[1] = Element(weight.thread_elements()[1]);
      }
#pragma clang loop unroll(full)
      for (int s = 0; s < Cut<DIM>::COLUMN_STRIPS; ++s) {
        const ColumnStrip<DIM> right = ColumnStrip<DIM>::load(tile, j, s, lane);
#pragma clang loop unroll(full)
        for (int f = 0; f < STRIP; ++f)
#pragma clang loop unroll(full)
          for (int i = 0; i < ROW_FRAGMENTS; ++i) {
            thread AccumulatorFragment& sum = fragments[i][s * STRIP + f];
            simdgroup_multiply_accumulate(sum, left[i], right.fragments[f], sum);
          }
      }
    }
  }

  // Writes this lane's columns of row fragment i, each times `weight`, to its row of the result.
  void store(int i, device Element* row, float weight, Lane lane) const thread {
    constexpr int STRIP = Cut<DIM>::COLUMN_STRIP;
    constexpr int WIDTH = DIM % 8 == 0 && VECTOR >= 2 * STRIP ? 2 * STRIP : 1;
#pragma clang loop unroll(full)
    for (int s = 0; s < Cut<DIM>::COLUMN_STRIPS; ++s) {
      Element columns[2 * STRIP];
#pragma clang loop unroll(full)
      for (int f = 0; f < STRIP; ++f) {
        AccumulatorFragment sum = fragments[i][s * STRIP + f];
        columns[2 * f] = Element(sum.thread_elements()[0] * weight);
        columns[2 * f + 1] = Element(sum.thread_elements()[1] * weight);
      }
      const int d = (s * 8 + lane.column) * STRIP;
#pragma clang loop unroll(full)
      for (int c = 0; c < 2 * STRIP; c += WIDTH) {
        if (d + c >= DIM) continue;
        Chunk<WIDTH> chunk;
#pragma clang loop unroll(full)
        for (int e = 0; e < WIDTH; ++e) chunk.values[e] = columns[c + e];
        *(device Chunk<WIDTH>*)(row + d + c) = chunk;
      }
    }
  }
};
