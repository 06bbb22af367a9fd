// Tiles on simdgroup matrices, 8x8 fragments. A lane holds (row, column) and (row, column + 1) of
// each, so a fragment is a group of rows by a group of columns.
//
// Which element of a head dimension a fragment's index stands for is free, as long as both operands
// of a product agree. It is chosen so that what a lane needs from W neighbouring fragments lies
// side by side in memory: every fragment load is one wide load, and nothing is stored transposed.
//   contraction (A B^T): index i of fragment f in a strip of W stands for d = W * i + f
//   columns     (S B):   column c of fragment f in a strip of W stands for d = W * c + 2 * f
//                        (c even; c + 1 follows)

typedef simdgroup_matrix<Element, 8, 8> OperandFragment;
typedef simdgroup_matrix<float, 8, 8> AccumulatorFragment;

// Fragments in a strip: the largest power of two that divides their number, 16 bytes a load at
// most.
constexpr int strip_width(int fragments, int most) {
  return (fragments & -fragments) < most ? (fragments & -fragments) : most;
}

// One simdgroup's part of a head dimension, cut into fragments and strips.
template <int DIM>
struct Cut {
  static constant constexpr int ALL = (DIM + 7) / 8;
  // Parts of a team are whole multiples of four, so that strips stay wide.
  static constant constexpr int FRAGMENTS = TEAM == 1 ? ALL : (ALL + 4 * TEAM - 1) / (4 * TEAM) * 4;
  static constant constexpr int PADDED = TEAM * FRAGMENTS * 8;
  static constant constexpr int STRIP = strip_width(FRAGMENTS, WIDEST);
  // Lanes that read strips of several rows meet no bank twice if rows lie 32 bytes off a multiple
  // of the banks, or, where strips are at most 4 bytes, an odd number of 16 bytes.
  static constant constexpr bool NARROW = STRIP * int(sizeof(Element)) <= 4;
  static constant constexpr int TO_ODD = PADDED / WIDEST % 2 == 0 ? WIDEST : 0;
  static constant constexpr int STRIDE = PADDED + (NARROW ? TO_ODD : 2 * WIDEST);
  static constant constexpr int STRIPS = FRAGMENTS / STRIP;
  static constant constexpr int COLUMN_STRIP = strip_width(FRAGMENTS, WIDEST / 2);
  static constant constexpr int COLUMN_STRIPS = FRAGMENTS / COLUMN_STRIP;

  // The first element of a strip of the lane's part.
  static int strip_first(int strip, Lane lane) {
    return (lane.part * FRAGMENTS + strip * STRIP) * 8;
  }
  static int column_first(int strip, Lane lane) {
    return (lane.part * FRAGMENTS + strip * COLUMN_STRIP) * 8;
  }
};

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
        const int d = Cut<DIM>::strip_first(strip, lane) + (lane.column + side) * STRIP + f;
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

  template <typename Block>
  static TransposedStrip load(const thread Block& block, int row_group, int strip, Lane lane) {
    constexpr int STRIP = Cut<DIM>::STRIP;
    TransposedStrip loaded;
    const int first = Cut<DIM>::strip_first(strip, lane), d = first + lane.row * STRIP;
#pragma clang loop unroll(full)
    for (int side = 0; side < 2; ++side) {
      const Packed<Element, STRIP> chunk =
          block.template elements<STRIP, 8 * STRIP>(row_group * 8 + lane.column + side, first, d);
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

  template <typename Block>
  static ColumnStrip load(const thread Block& block, int row_group, int strip, Lane lane) {
    constexpr int STRIP = Cut<DIM>::COLUMN_STRIP;
    ColumnStrip loaded;
    const int first = Cut<DIM>::column_first(strip, lane), d = first + lane.column * STRIP;
    const Packed<Element, 2 * STRIP> chunk =
        block.template elements<2 * STRIP, 8 * STRIP>(row_group * 8 + lane.row, first, d);
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
  const device Element* rows[ROW_GROUPS];  // this lane's row in each row fragment
  bool valid[ROW_GROUPS];
  OwnedStrip<DIM> strips[OWNED_IN_REGISTERS ? ROW_GROUPS : 1]
                        [OWNED_IN_REGISTERS ? Cut<DIM>::STRIPS : 1];

  static Owned load(const device Element* first_row, long row_stride, int rows_left, Lane lane) {
    const device Element* rows[ROW_GROUPS];
    bool valid[ROW_GROUPS];
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_GROUPS; ++i) {
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
    for (int i = 0; i < ROW_GROUPS; ++i) {
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
  AccumulatorFragment fragments[ROW_GROUPS][STREAMED_GROUPS];

  static Scores zero() {
    Scores scores;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_GROUPS; ++i)
#pragma clang loop unroll(full)
      for (int j = 0; j < STREAMED_GROUPS; ++j)
        scores.fragments[i][j] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    return scores;
  }

  float get(int i, int j, int e) const thread {
    AccumulatorFragment products = fragments[i][j];
    return products.thread_elements()[e];
  }
  void set(int i, int j, int e, float value) thread {
    fragments[i][j].thread_elements()[e] = value;
  }

  // += owned block^T, over the columns of the lane's part.
  template <int DIM, typename Block>
  void multiply(const thread Owned<DIM>& owned, const thread Block& block, Lane lane) thread {
#pragma clang loop unroll(full)
    for (int s = 0; s < Cut<DIM>::STRIPS; ++s) {
      OwnedStrip<DIM> left[ROW_GROUPS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_GROUPS; ++i) left[i] = owned.strip(i, s, lane);
#pragma clang loop unroll(full)
      for (int j = 0; j < STREAMED_GROUPS; ++j) {
        const TransposedStrip<DIM> right = TransposedStrip<DIM>::load(block, j, s, lane);
#pragma clang loop unroll(full)
        for (int f = 0; f < Cut<DIM>::STRIP; ++f)
#pragma clang loop unroll(full)
          for (int i = 0; i < ROW_GROUPS; ++i)
            simdgroup_multiply_accumulate(fragments[i][j], left[i].fragments[f], right.fragments[f],
                                          fragments[i][j]);
      }
    }
  }
};

// [ROWS][DIM] in fp32; of each row group a lane holds ELEMENTS.
template <int DIM>
struct Accumulator {
  static constant constexpr int ELEMENTS = 2 * Cut<DIM>::FRAGMENTS;
  AccumulatorFragment fragments[ROW_GROUPS][Cut<DIM>::FRAGMENTS];

  static Accumulator zero() {
    Accumulator accumulator;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_GROUPS; ++i)
#pragma clang loop unroll(full)
      for (int f = 0; f < Cut<DIM>::FRAGMENTS; ++f)
        accumulator.fragments[i][f] = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
    return accumulator;
  }

  float get(int i, int element) const thread {
    AccumulatorFragment sums = fragments[i][element / 2];
    return sums.thread_elements()[element % 2];
  }
  void set(int i, int element, float value) thread {
    fragments[i][element / 2].thread_elements()[element % 2] = value;
  }

  void scale_rows(int i, float factor) thread {
#pragma clang loop unroll(full)
    for (int element = 0; element < ELEMENTS; ++element) set(i, element, get(i, element) * factor);
  }

  // += weights block. The accumulator layout is the left operand's too: weights stay in registers.
  template <typename Block>
  void accumulate(const thread Scores& weights, const thread Block& block, Lane lane) thread {
    constexpr int STRIP = Cut<DIM>::COLUMN_STRIP;
#pragma clang loop unroll(full)
    for (int j = 0; j < STREAMED_GROUPS; ++j) {
      OperandFragment left[ROW_GROUPS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_GROUPS; ++i) {
        AccumulatorFragment weight = weights.fragments[i][j];
        left[i].thread_elements()[0] = Element(weight.thread_elements()[0]);
        left[i].thread_elements()[1] = Element(weight.thread_elements()[1]);
      }
#pragma clang loop unroll(full)
      for (int s = 0; s < Cut<DIM>::COLUMN_STRIPS; ++s) {
        const ColumnStrip<DIM> right = ColumnStrip<DIM>::load(block, j, s, lane);
#pragma clang loop unroll(full)
        for (int f = 0; f < STRIP; ++f)
#pragma clang loop unroll(full)
          for (int i = 0; i < ROW_GROUPS; ++i) {
            thread AccumulatorFragment& sum = fragments[i][s * STRIP + f];
            simdgroup_multiply_accumulate(sum, left[i], right.fragments[f], sum);
          }
      }
    }
  }

  // Writes this lane's columns of row group i, each times `weight`, to its row of the result.
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
      const int d = Cut<DIM>::column_first(s, lane) + lane.column * STRIP;
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
