// Tiles on Metal 4's tensor operations, behind the same names as tile.h: 16x32x16 products of one
// simdgroup, whose operands stay in registers. There a lane holds, of each 16x16 fragment, rows
// (row) and (row + 8), and four elements of each: two groups of rows by two groups of columns.
//
// Which lane holds what of a cooperative tensor is the implementation's choice. The known layouts
// are one in rows and lanes and differ in the columns, which are free as in tile.h, as long as both
// operands of a product agree; so registers move into cooperative tensors as they are. In a layout
// nobody knows they go through threadgroup memory, by get_multidimensional_index: slow, and right.
//   contraction, columns: of 32 neighbours of a head dimension, lane column c / 2 of four holds
//                         CHUNK side by side at CHUNK * c / 2, again 4 * CHUNK further on
//   streamed rows:        of 16, elements e of lane column c stand for 8 * (e / 2) + c + e % 2

using namespace mpp::tensor_ops;

constant constexpr int CHUNK = WIDEST < 8 ? WIDEST : 8;
constant constexpr int OWNED_FRAGMENTS = ROWS / 16;
constant constexpr int STREAMED_STRIPS = STREAMED / 32;

// One simdgroup's part of a head dimension, in strips of 32.
template <int DIM>
struct Cut {
  static constant constexpr int STRIPS = (DIM + 32 * TEAM - 1) / (32 * TEAM);
  static constant constexpr int PADDED = TEAM * STRIPS * 32;
  static constant constexpr int STRIDE = PADDED + 2 * WIDEST;

  // The first element of a strip of the lane's part, and the first of the lane's own in a strip.
  static int strip_first(int strip, Lane lane) { return (lane.part * STRIPS + strip) * 32; }
  static int own_first(Lane lane) { return lane.column / 2 * CHUNK; }
};

// What a lane holds of one row and 32 columns: four elements of each of two fragments.
struct Eight {
  Element values[8];
};

// The streamed row, of 32, that row `row` of a fragment of 16 stands for.
inline int streamed_row(int sixteen, int row) {
  const int within = IS_APPLE10_LAYOUT ? row % 4 / 2 * 8 + row / 4 * 2 + row % 2 : row;
  return sixteen * 16 + within;
}

// This lane's share of a streamed row.
template <int DIM, typename Block>
inline Eight load_eight(const thread Block& block, int row, int strip, Lane lane) {
  Eight eight;
  const int first = Cut<DIM>::strip_first(strip, lane), d = first + Cut<DIM>::own_first(lane);
#pragma clang loop unroll(full)
  for (int x = 0; x < 8; x += CHUNK) {
    const Packed<Element, CHUNK> chunk = block.template elements<CHUNK, 32>(row, first, d + 4 * x);
#pragma clang loop unroll(full)
    for (int i = 0; i < CHUNK; ++i) eight.values[x + i] = chunk.values[i];
  }
  return eight;
}

// sum [16][32] += left [16][16] right, where right is [32][16] transposed, or [16][32].
template <bool TRANSPOSED>
struct Product {
  // Elements of fragments in the order of registers: fragment, row group, four columns.
  static void run(thread float* sum, const thread Element* left, const thread Element* right,
                  Lane lane) {
    constexpr auto descriptor = matmul2d_descriptor(16, 32, 16, false, TRANSPOSED, RELAXED,
                                                    matmul2d_descriptor::mode::multiply_accumulate);
    matmul2d<descriptor, execution_simdgroup> product;
    auto a = product.template get_left_input_cooperative_tensor<Element, Element, float>();
    auto b = product.template get_right_input_cooperative_tensor<Element, Element, float>();
    auto c = product.template get_destination_cooperative_tensor<decltype(a), decltype(b), float>();
    put<8, false>(a, left, lane);
    put<16, TRANSPOSED>(b, right, lane);
    put<16, false>(c, sum, lane);
    product.run(a, b, c);
    if (KNOWN_LAYOUT) {
#pragma clang loop unroll(full)
      for (int slot = 0; slot < 16; ++slot) sum[slot] = c[slot];
      return;
    }
    threadgroup float* shared = lane.exchange + PARTS;
    for (ushort slot = 0; slot < c.get_capacity(); ++slot) {
      const auto place = c.get_multidimensional_index(slot);
      if (c.is_valid_element(slot)) shared[index_of<false>(place[1], place[0])] = c[slot];
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
    // No barrier behind it: what a lane reads here it alone overwrites, in the next product's put.
    for (int slot = 0; slot < 16; ++slot) sum[slot] = shared[place_of<false>(slot, lane)];
  }

 private:
  template <int SLOTS, bool DOWN, typename Tensor, typename T>
  static void put(thread Tensor& tensor, const thread T* values, Lane lane) {
    if (KNOWN_LAYOUT) {
#pragma clang loop unroll(full)
      for (int slot = 0; slot < SLOTS; ++slot) tensor[slot] = values[slot];
      return;
    }
    threadgroup float* shared = lane.exchange + PARTS;
    for (int slot = 0; slot < SLOTS; ++slot)
      shared[place_of<DOWN>(slot, lane)] = float(values[slot]);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    for (ushort slot = 0; slot < tensor.get_capacity(); ++slot) {
      const auto place = tensor.get_multidimensional_index(slot);
      if (tensor.is_valid_element(slot))
        tensor[slot] = T(shared[index_of<DOWN>(place[1], place[0])]);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }

  // Where registers lie in memory. Two fragments lie side by side or, DOWN, stacked.
  template <bool DOWN>
  static int place_of(int slot, Lane lane) {
    const int row = lane.row + slot / 4 % 2 * 8 + (DOWN ? slot / 8 * 16 : 0);
    const int column = lane.column + slot % 2 + slot % 4 / 2 * 8 + (DOWN ? 0 : slot / 8 * 16);
    return index_of<DOWN>(row, column);
  }
  template <bool DOWN>
  static int index_of(int row, int column) {
    return row * (DOWN ? 16 : 32) + column;
  }
};

// [ROWS][DIM], owned: kept in registers for the whole loop, or read again for each streamed block.
template <int DIM>
struct Owned {
  const device Element* rows[ROW_GROUPS];  // this lane's row in each row group
  bool valid[ROW_GROUPS];
  Eight strips[OWNED_IN_REGISTERS ? ROW_GROUPS : 1][OWNED_IN_REGISTERS ? Cut<DIM>::STRIPS : 1];

  static Owned load(const device Element* first_row, long row_stride, int rows_left, Lane lane) {
    Owned loaded;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_GROUPS; ++i) {
      const int row = i * 8 + lane.row;
      loaded.valid[i] = row < rows_left;
      loaded.rows[i] = first_row + long(row) * row_stride;
      if (OWNED_IN_REGISTERS) {
#pragma clang loop unroll(full)
        for (int s = 0; s < Cut<DIM>::STRIPS; ++s) loaded.strips[i][s] = loaded.read(i, s, lane);
      }
    }
    return loaded;
  }

  Eight strip(int i, int s, Lane lane) const thread {
    if (OWNED_IN_REGISTERS) return strips[i][s];
    return read(i, s, lane);
  }

 private:
  Eight read(int i, int s, Lane lane) const thread {
    constexpr int WIDTH = VECTOR < CHUNK ? VECTOR : CHUNK;
    Eight eight = {};
    const int own = Cut<DIM>::strip_first(s, lane) + Cut<DIM>::own_first(lane);
#pragma clang loop unroll(full)
    for (int x = 0; x < 8; x += WIDTH) {
      const int d = own + x / CHUNK * 4 * CHUNK + x % CHUNK;
      if (!valid[i] || d >= DIM) continue;
      const Packed<Element, WIDTH> chunk = *(const device Packed<Element, WIDTH>*)(rows[i] + d);
#pragma clang loop unroll(full)
      for (int e = 0; e < WIDTH; ++e) eight.values[x + e] = chunk.values[e];
    }
    return eight;
  }
};

// [ROWS][STREAMED] in fp32: products, then what the kernel makes of them in place.
struct Scores {
  float fragments[OWNED_FRAGMENTS][STREAMED_STRIPS][16];

  static Scores zero() {
    Scores scores;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_GROUPS; ++i)
#pragma clang loop unroll(full)
      for (int j = 0; j < STREAMED_GROUPS; ++j)
#pragma clang loop unroll(full)
        for (int e = 0; e < 2; ++e) scores.set(i, j, e, 0.0f);
    return scores;
  }

  static int slot(int i, int j, int e) { return j % 4 / 2 * 8 + i % 2 * 4 + j % 2 * 2 + e; }
  float get(int i, int j, int e) const thread { return fragments[i / 2][j / 4][slot(i, j, e)]; }
  void set(int i, int j, int e, float value) thread {
    fragments[i / 2][j / 4][slot(i, j, e)] = value;
  }

  // += owned block^T, over the columns of the lane's part.
  template <int DIM, typename Block>
  void multiply(const thread Owned<DIM>& owned, const thread Block& block, Lane lane) thread {
#pragma clang loop unroll_count(4)
    for (int s = 0; s < Cut<DIM>::STRIPS; ++s) {
      Eight left[ROW_GROUPS];
#pragma clang loop unroll(full)
      for (int i = 0; i < ROW_GROUPS; ++i) left[i] = owned.strip(i, s, lane);
#pragma clang loop unroll(full)
      for (int j = 0; j < STREAMED_STRIPS; ++j) {
        Eight right[4];
#pragma clang loop unroll(full)
        for (int g = 0; g < 4; ++g)
          right[g] =
              load_eight<DIM>(block, j * 32 + streamed_row(g / 2, lane.row + g % 2 * 8), s, lane);
#pragma clang loop unroll(full)
        for (int f = 0; f < 2; ++f) {
          Element right_fragment[16];
#pragma clang loop unroll(full)
          for (int slot = 0; slot < 16; ++slot)
            right_fragment[slot] = right[slot / 4].values[4 * f + slot % 4];
#pragma clang loop unroll(full)
          for (int i = 0; i < OWNED_FRAGMENTS; ++i) {
            Element left_fragment[8];
#pragma clang loop unroll(full)
            for (int slot = 0; slot < 8; ++slot)
              left_fragment[slot] = left[2 * i + slot / 4].values[4 * f + slot % 4];
            Product<true>::run(fragments[i][j], left_fragment, right_fragment, lane);
          }
        }
      }
    }
  }
};

// [ROWS][DIM] in fp32; of each row group a lane holds ELEMENTS.
template <int DIM>
struct Accumulator {
  static constant constexpr int ELEMENTS = Cut<DIM>::STRIPS * 8;
  float fragments[OWNED_FRAGMENTS][Cut<DIM>::STRIPS][16];

  static Accumulator zero() {
    Accumulator accumulator;
#pragma clang loop unroll(full)
    for (int i = 0; i < ROW_GROUPS; ++i)
#pragma clang loop unroll(full)
      for (int element = 0; element < ELEMENTS; ++element) accumulator.set(i, element, 0.0f);
    return accumulator;
  }

  static int slot(int i, int element) { return element % 8 / 4 * 8 + i % 2 * 4 + element % 4; }
  float get(int i, int element) const thread {
    return fragments[i / 2][element / 8][slot(i, element)];
  }
  void set(int i, int element, float value) thread {
    fragments[i / 2][element / 8][slot(i, element)] = value;
  }

  void scale_rows(int i, float factor) thread {
#pragma clang loop unroll(full)
    for (int element = 0; element < ELEMENTS; ++element) set(i, element, get(i, element) * factor);
  }

  // += weights block. The layout of sums is the left operand's too: weights stay in registers.
  template <typename Block>
  void accumulate(const thread Scores& weights, const thread Block& block, Lane lane) thread {
#pragma clang loop unroll(full)
    for (int step = 0; step < STREAMED / 16; ++step) {
      Element left[OWNED_FRAGMENTS][8];
#pragma clang loop unroll(full)
      for (int i = 0; i < OWNED_FRAGMENTS; ++i)
#pragma clang loop unroll(full)
        for (int slot = 0; slot < 8; ++slot)
          left[i][slot] = Element(weights.fragments[i][step / 2][step % 2 * 8 + slot]);
#pragma clang loop unroll(full)
      for (int s = 0; s < Cut<DIM>::STRIPS; ++s) {
        Element right[16];
#pragma clang loop unroll(full)
        for (int side = 0; side < 2; ++side) {
          const int row = step / 2 * 32 + streamed_row(step % 2, lane.row + side * 8);
          const Eight eight = load_eight<DIM>(block, row, s, lane);
#pragma clang loop unroll(full)
          for (int x = 0; x < 8; ++x) right[x / 4 * 8 + side * 4 + x % 4] = eight.values[x];
        }
#pragma clang loop unroll(full)
        for (int i = 0; i < OWNED_FRAGMENTS; ++i)
          Product<false>::run(fragments[i][s], left[i], right, lane);
      }
    }
  }

  // Writes this lane's columns of row group i, each times `weight`, to its row of the result.
  template <typename Result>
  void store(int i, device Result* row, float weight, Lane lane) const thread {
    constexpr int MOST = VECTOR < CHUNK ? VECTOR : CHUNK;
    constexpr int WIDTH = sizeof(Result) == sizeof(Element) ? MOST : 1;
#pragma clang loop unroll(full)
    for (int s = 0; s < Cut<DIM>::STRIPS; ++s) {
      const int own = Cut<DIM>::strip_first(s, lane) + Cut<DIM>::own_first(lane);
#pragma clang loop unroll(full)
      for (int x = 0; x < 8; x += WIDTH) {
        const int d = own + x / CHUNK * 4 * CHUNK + x % CHUNK;
        if (d >= DIM) continue;
        Packed<Result, WIDTH> chunk;
#pragma clang loop unroll(full)
        for (int e = 0; e < WIDTH; ++e) chunk.values[e] = Result(get(i, s * 8 + x + e) * weight);
        *(device Packed<Result, WIDTH>*)(row + d) = chunk;
      }
    }
  }
};
