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

// Rows of q or grad_o of one head, as a source to stage.
struct PlainRows {
  static constant constexpr int WIDTH = VECTOR;
  const device Element* first;
  long stride;

  template <int DIM>
  Packed<Element, WIDTH> chunk(int row, int column) const thread {
    if (column >= DIM) return {};
    return *(const device Packed<Element, WIDTH>*)(first + long(row) * stride + column);
  }
};

// Keys or values from `first` on, as a source to stage.
template <typename Rows, int LOAD>
struct StoredRows {
  static constant constexpr int WIDTH = LOAD;
  Rows rows;
  Sequence sequence;
  int first;

  template <int DIM>
  Packed<Element, WIDTH> chunk(int row, int column) const thread {
    const int key = first + row, page = sequence.page(key);
    if (page < 0) return {};
    return Rows::template elements<WIDTH>(rows.row(sequence, page, key), column,
                                          rows.scale(sequence, page, key, column));
  }
};

// Copies rows [0, valid) of a source, STREAMED in all, into threadgroup memory. Missing rows and
// the columns that pad DIM to whole fragments become zero, so that 0 * garbage never makes a NaN.
template <int DIM, typename Source>
inline void stage(threadgroup Element* tile,  // [STREAMED][Cut<DIM>::STRIDE]
                  const thread Source& source, int valid, uint thread_index) {
  constexpr int WIDTH = Source::WIDTH, CHUNKS = Cut<DIM>::FRAGMENTS * 8 / WIDTH;
#pragma clang loop unroll(full)
  for (int index = int(thread_index); index < STREAMED * CHUNKS; index += THREADS) {
    const int row = index / CHUNKS, column = index % CHUNKS * WIDTH;
    Packed<Element, WIDTH> chunk = {};
    if (row < valid) chunk = source.template chunk<DIM>(row, column);
    *(threadgroup Packed<Element, WIDTH>*)(tile + row * Cut<DIM>::STRIDE + column) = chunk;
  }
}

// Stages the keys from `key` on, and their values.
inline void stage_keys_and_values(threadgroup Element* k_tile, threadgroup Element* v_tile,
                                  const thread Keys& keys, const thread Values& values,
                                  const thread Sequence& sequence, int key, uint thread_index) {
  const int valid = sequence.k_length - key;
  const StoredRows<Keys, K_VECTOR> k = {keys, sequence, key};
  const StoredRows<Values, V_VECTOR> v = {values, sequence, key};
  stage<HEAD_DIM>(k_tile, k, valid, thread_index);
  stage<HEAD_DIM_V>(v_tile, v, valid, thread_index);
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
        Packed<Element, WIDTH> chunk = {};
        if (valid && d < DIM) chunk = *(const device Packed<Element, WIDTH>*)(row + d);
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

  void put(int side, Packed<Element, Cut<DIM>::STRIP> chunk) thread {
#pragma clang loop unroll(full)
    for (int f = 0; f < Cut<DIM>::STRIP; ++f)
      fragments[f].thread_elements()[side] = chunk.values[f];
  }
};

// Eight streamed rows by one strip of columns: right operands of a sum over those rows.
template <int DIM>
struct ColumnStrip {
  OperandFragment fragments[Cut<DIM>::COLUMN_STRIP];

  static ColumnStrip of(Packed<Element, 2 * Cut<DIM>::COLUMN_STRIP> chunk) {
    ColumnStrip strip;
#pragma clang loop unroll(full)
    for (int f = 0; f < Cut<DIM>::COLUMN_STRIP; ++f) {
      strip.fragments[f].thread_elements()[0] = chunk.values[2 * f];
      strip.fragments[f].thread_elements()[1] = chunk.values[2 * f + 1];
    }
    return strip;
  }
};

// [STREAMED][DIM] in threadgroup memory, which all simdgroups multiply with.
template <int DIM>
struct StagedBlock {
  const threadgroup Element* tile;

  TransposedStrip<DIM> transposed(int row_fragment, int strip, Lane lane) const thread {
    constexpr int STRIP = Cut<DIM>::STRIP;
    TransposedStrip<DIM> loaded;
    const int d = (strip * 8 + lane.row) * STRIP;
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; ++side) {
      const int row = row_fragment * 8 + lane.column + side;
      loaded.put(side,
                 *(const threadgroup Packed<Element, STRIP>*)(tile + row * Cut<DIM>::STRIDE + d));
    }
    return loaded;
  }

  ColumnStrip<DIM> columns(int row_fragment, int strip, Lane lane) const thread {
    constexpr int STRIP = Cut<DIM>::COLUMN_STRIP;
    const int row = row_fragment * 8 + lane.row, d = (strip * 8 + lane.column) * STRIP;
    return ColumnStrip<DIM>::of(
        *(const threadgroup Packed<Element, 2 * STRIP>*)(tile + row * Cut<DIM>::STRIDE + d));
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
    const device Element* rows[ROW_FRAGMENTS];
    bool valid[ROW_FRAGMENTS];
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i) {
      const int row = i * 8 + lane.row;
      valid[i] = row < rows_left;
      rows[i] = first_row + long(row) * row_stride;
    }
    return load(rows, valid, lane);
  }

  // Rows from anywhere; this lane's of each row fragment.
  static Owned load(const device Element* const thread* rows, const thread bool* valid, Lane lane) {
    Owned loaded;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_FRAGMENTS; ++i) {
      loaded.valid[i] = valid[i];
      loaded.rows[i] = rows[i];
      if (OWNED_IN_REGISTERS) {
#pragma clang loop unroll(full)
        for (int s = 0; s < Cut<DIM>::STRIPS; ++s)
          loaded.strips[i][s] = OwnedStrip<DIM>::load(rows[i], valid[i], s, lane);
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

  // owned block^T
  template <int DIM, typename Block>
  static Scores multiply(const thread Owned<DIM>& owned, const thread Block& block, Lane lane) {
    Scores scores = zero();
#pragma clang loop unroll(full)
    for (int s = 0; s < Cut<DIM>::STRIPS; ++s) {
      OwnedStrip<DIM> left[ROW_FRAGMENTS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_FRAGMENTS; ++i) left[i] = owned.strip(i, s, lane);
#pragma clang loop unroll(full)
      for (int j = 0; j < STREAMED_FRAGMENTS; ++j) {
        const TransposedStrip<DIM> right = block.transposed(j, s, lane);
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

  // += weights block. The accumulator layout is the left operand's too: weights stay in registers.
  template <typename Block>
  void accumulate(const thread Scores& weights, const thread Block& block, Lane lane) thread {
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
        const ColumnStrip<DIM> right = block.columns(j, s, lane);
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
  template <typename Result>
  void store(int i, device Result* row, float weight, Lane lane) const thread {
    constexpr int STRIP = Cut<DIM>::COLUMN_STRIP, MOST = 16 / int(sizeof(Result));
    constexpr int ALIGNED =
        sizeof(Result) == sizeof(Element) ? VECTOR : MOST;  // partial results are
    constexpr int WIDEST_STORE = 2 * STRIP < MOST ? 2 * STRIP : MOST;
    constexpr int WIDTH = DIM % 8 == 0 && ALIGNED >= WIDEST_STORE ? WIDEST_STORE : 1;
#pragma clang loop unroll(full)
    for (int s = 0; s < Cut<DIM>::COLUMN_STRIPS; ++s) {
      Result columns[2 * STRIP];
#pragma clang loop unroll(full)
      for (int f = 0; f < STRIP; ++f) {
        AccumulatorFragment sum = fragments[i][s * STRIP + f];
        columns[2 * f] = Result(sum.thread_elements()[0] * weight);
        columns[2 * f + 1] = Result(sum.thread_elements()[1] * weight);
      }
      const int d = (s * 8 + lane.column) * STRIP;
#pragma clang loop unroll(full)
      for (int c = 0; c < 2 * STRIP; c += WIDTH) {
        if (d + c >= DIM) continue;
        Packed<Result, WIDTH> chunk;
#pragma clang loop unroll(full)
        for (int e = 0; e < WIDTH; ++e) chunk.values[e] = columns[c + e];
        *(device Packed<Result, WIDTH>*)(row + d + c) = chunk;
      }
    }
  }
};
