// Where a tile's streamed blocks come from: threadgroup memory, which all simdgroups share and fill
// together, or device memory as it is. All offer the same: `elements` of one of STREAMED rows.

// Rows of q or grad_o of one head.
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

// Keys or values from `first` on.
template <typename Rows>
struct StoredRows {
  static constant constexpr int WIDTH = Rows::WIDTH;
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

// The pages of STREAMED keys from `first` on. Lane i knows the page of key i, -1 for none.
struct Pages {
  int first;
  int page;
  uint hidden;  // keys of the left padding or without a page, a bit each

  static Pages of(const thread Sequence& sequence, int first, uint lane_index) {
    Pages pages = {first, -1, 0};
    const int key = first + int(lane_index);
    const bool exists = int(lane_index) < STREAMED && key < sequence.k_length;
    if (exists) pages.page = sequence.page(key);
    if (HAS_PAGES || HAS_LEFTPAD_K)
      pages.hidden = uint(ulong(simd_ballot(exists && pages.page < 0)));
    return pages;
  }
};

// [STREAMED][DIM] in threadgroup memory.
template <int DIM>
struct StagedBlock {
  threadgroup Element* tile;  // [STREAMED][Cut<DIM>::STRIDE]

  static StagedBlock at(threadgroup Element* tile) { return {tile}; }

  // Copies rows [0, valid) of a source. Missing rows and the columns that pad DIM become zero, so
  // that 0 * garbage never makes a NaN.
  template <typename Source>
  void fill(const thread Source& source, int valid, uint thread_index) const thread {
    constexpr int WIDTH = Source::WIDTH, CHUNKS = Cut<DIM>::PADDED / WIDTH;
#pragma clang loop unroll(full)
    for (int index = int(thread_index); index < STREAMED * CHUNKS; index += THREADS) {
      const int row = index / CHUNKS, column = index % CHUNKS * WIDTH;
      Packed<Element, WIDTH> chunk = {};
      if (row < valid) chunk = source.template chunk<DIM>(row, column);
      *(threadgroup Packed<Element, WIDTH>*)(tile + row * Cut<DIM>::STRIDE + column) = chunk;
    }
  }

  template <typename Rows>
  void take(const thread Rows& rows, const thread Sequence& sequence, Pages pages,
            uint thread_index) const thread {
    const StoredRows<Rows> source = {rows, sequence, pages.first};
    fill(source, sequence.k_length - pages.first, thread_index);
  }
  void take(const thread PlainRows& rows, int valid, uint thread_index) const thread {
    fill(rows, valid, thread_index);
  }

  // N elements of a row from d on, which lies in the strip of SPAN columns from `strip_first` on.
  template <int N, int SPAN>
  Packed<Element, N> elements(int row, int strip_first, int d) const thread {
    return *(const threadgroup Packed<Element, N>*)(tile + row * Cut<DIM>::STRIDE + d);
  }
};

// Keys or values [STREAMED][DIM] in device memory, dequantised on the way. Lane i knows the page
// and the scales of row i.
template <typename Rows, int FORMAT, int DIM>
struct StoredBlock {
  Rows rows;
  Sequence sequence;
  Pages pages;
  float scales[FORMAT == INT4 ? DIM / INT4_GROUP : 1];

  static StoredBlock at(threadgroup Element*) { return {}; }

  void take(const thread Rows& its_rows, const thread Sequence& its_sequence, Pages its_pages,
            uint lane_index) thread {
    rows = its_rows;
    sequence = its_sequence;
    pages = its_pages;
    if (FORMAT == DENSE || pages.page < 0) return;
    const int key = pages.first + int(lane_index % 32);
#pragma clang loop unroll(full)
    for (int d = 0; d < (FORMAT == INT4 ? DIM : 1); d += INT4_GROUP)
      scales[d / INT4_GROUP] = rows.scale(sequence, pages.page, key, d);
  }

  template <int N, int SPAN>
  Packed<Element, N> elements(int row, int strip_first, int d) const thread {
    const int page = simd_shuffle(pages.page, ushort(row));
    const float scale = scale_of<SPAN>(row, strip_first, d);
    if (page < 0) return {};
    return Rows::template elements<N>(rows.row(sequence, page, pages.first + row), d, scale);
  }

  // Lanes want scales of different groups of the strip: all of them ask for all.
  template <int SPAN>
  float scale_of(int row, int strip_first, int d) const thread {
    if (FORMAT == DENSE) return 1.0f;
    if (FORMAT != INT4) return simd_shuffle(scales[0], ushort(row));
    constexpr int GROUPS = SPAN < INT4_GROUP ? 1 : SPAN / INT4_GROUP;
    float scale = 0.0f;
#pragma clang loop unroll(full)
    for (int i = 0; i < GROUPS; ++i) {
      const int group = strip_first / INT4_GROUP + i;
      const float theirs = simd_shuffle(scales[min(group, DIM / INT4_GROUP - 1)], ushort(row));
      if (d / INT4_GROUP == group) scale = theirs;
    }
    return scale;
  }
};

// Rows [STREAMED][DIM] of q or grad_o in device memory.
template <int DIM>
struct PlainBlock {
  PlainRows rows;
  int valid;

  static PlainBlock at(threadgroup Element*) { return {}; }

  void take(const thread PlainRows& its_rows, int its_valid, uint) thread {
    rows = its_rows;
    valid = its_valid;
  }

  template <int N, int SPAN>
  Packed<Element, N> elements(int row, int, int d) const thread {
    Packed<Element, N> loaded = {};
    if (row >= valid) return loaded;
    constexpr int WIDTH = PlainRows::WIDTH < N ? PlainRows::WIDTH : N;
#pragma clang loop unroll(full)
    for (int first = 0; first < N; first += WIDTH) {
      if (d + first >= DIM) continue;
      const Packed<Element, WIDTH> chunk =
          *(const device Packed<Element, WIDTH>*)(rows.first + long(row) * rows.stride + d + first);
#pragma clang loop unroll(full)
      for (int i = 0; i < WIDTH; ++i) loaded.values[first + i] = chunk.values[i];
    }
    return loaded;
  }
};

typedef conditional_t<STAGED, StagedBlock<HEAD_DIM>, StoredBlock<Keys, K_FORMAT, HEAD_DIM>>
    KeyBlock;
typedef conditional_t<STAGED, StagedBlock<HEAD_DIM_V>, StoredBlock<Values, V_FORMAT, HEAD_DIM_V>>
    ValueBlock;
typedef conditional_t<STAGED, StagedBlock<HEAD_DIM>, PlainBlock<HEAD_DIM>> QueryBlock;
typedef conditional_t<STAGED, StagedBlock<HEAD_DIM_V>, PlainBlock<HEAD_DIM_V>> GradOutputBlock;
