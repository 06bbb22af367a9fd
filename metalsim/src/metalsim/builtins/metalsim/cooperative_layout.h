// Which lane holds which element of a matrix that a simdgroup (or several) shares. Apple leaves it
// to the implementation, so it is chosen when a program is compiled: METALSIM_COOPERATIVE_LAYOUT
// is 10 for Apple10, 9 for the GPUs before it, 0 for one drawn from METALSIM_COOPERATIVE_SEED.
#pragma once

#include "type_traits.h"

#if !defined(METALSIM_COOPERATIVE_LAYOUT)
#define METALSIM_COOPERATIVE_LAYOUT 10
#define METALSIM_COOPERATIVE_SEED 0
#endif

namespace metalsim {

enum class Operand { left, right, destination };

// What the implementation may answer differently from GPU to GPU, drawn from the seed's lowest bits
// so that all four combinations are easy to ask for.
inline constexpr bool is_random_layout = METALSIM_COOPERATIVE_LAYOUT == 0;
// Whether tensors of equal shape agree in layout although they are other operands, of another type
// or of another operation; and whether rows agree with their reductions.
inline constexpr bool layouts_agree = !is_random_layout || METALSIM_COOPERATIVE_SEED % 2 == 0;
// Whether mode::multiply adds to what a destination in memory holds. Apple's header says both; a
// kernel that clears its destination need not know.
inline constexpr bool multiply_adds_to_memory =
    is_random_layout && METALSIM_COOPERATIVE_SEED / 2 % 2 == 1;

// An element's index in each dimension, innermost first.
struct Place {
  int index[2];
  bool valid;
};

// 16x16 fragments in row-major order, eight elements a lane: two rows that lie eight apart, four
// columns of each. Measured on an M5 (MNN, MLX: BaseNAXFrag) and older GPUs (torch: MppAttention).
struct Fragment {
  static constexpr bool is_apple10 = METALSIM_COOPERATIVE_LAYOUT == 10;

  static METALSIM_INLINE int row(int lane, int pair) {
    const int first =
        is_apple10 ? (lane >> 2 & 4) | (lane >> 1 & 3) : (lane >> 4 & 1) * 4 + (lane >> 1 & 3);
    return first + pair * 8;
  }
  static METALSIM_INLINE int column(int lane, int element) {
    if constexpr (is_apple10) return ((lane >> 2 & 2) | (lane & 1)) * 4 + element;
    return (lane >> 3 & 1) * 4 + (lane & 1) * 2 + element % 2 + element / 2 * 8;
  }
};

template <int rows, int columns, int simdgroups>
struct FragmentLayout {
  static constexpr int across = (columns + 15) / 16, down = (rows + 15) / 16;
  static constexpr int share = (across * down + simdgroups - 1) / simdgroups;
  static constexpr int capacity = share * 8;
  static constexpr bool is_full =
      rows % 16 == 0 && columns % 16 == 0 && across * down % simdgroups == 0;
  // The most rows of fragments that one simdgroup holds parts of.
  static constexpr int band = share % across == 0   ? share / across
                              : across % share == 0 ? 1
                                                    : (share + across - 2) / across + 1;
  static constexpr int band_rows = (band < down ? band : down) * 16;

  static METALSIM_INLINE int first_row(int simdgroup) { return simdgroup * share / across * 16; }

  static METALSIM_INLINE Place place(int simdgroup, int lane, int slot) {
    const int fragment = simdgroup * share + slot / 8;
    const int row = fragment / across * 16 + Fragment::row(lane, slot / 4 % 2);
    const int column = fragment % across * 16 + Fragment::column(lane, slot % 4);
    const bool valid = is_full || (row < rows && column < columns);
    return {{column, row}, valid};
  }
};

// The elements along one dimension of a matrix: each lane has those of its own rows or columns, and
// of the lanes that have the same one stores it.
template <int length, bool of_rows>
struct FragmentLineLayout {
  static constexpr int each = of_rows ? 2 : 4;
  static constexpr int capacity = (length + 15) / 16 * each;

  static METALSIM_INLINE Place place(int lane, int slot) {
    const int within =
        of_rows ? Fragment::row(lane, slot % each) : Fragment::column(lane, slot % each);
    const int index = slot / each * 16 + within;
    return {{index, 0}, index < length};
  }
  static METALSIM_INLINE bool stores(int lane, int) {
    return (of_rows ? Fragment::column(lane, 0) : Fragment::row(lane, 0)) == 0;
  }
};

// i -> (i * step + start) % size, each number once.
struct Permutation {
  uint64_t size, step, start;

  constexpr Permutation(uint64_t size, uint64_t salt) : size(size), step(0), start(0) {
    uint64_t mixed = (METALSIM_COOPERATIVE_SEED + 1) * 0x9E3779B97F4A7C15u ^ salt;
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EBu;
    start = (mixed >> 32) % size;
    step = (mixed & 0xFFFFFFFF) % size;
    while (common_divisor(step, size) != 1) step = (step + 1) % size;
  }
  METALSIM_INLINE constexpr int operator()(uint64_t number) const {
    return static_cast<int>((number * step + start) % size);
  }

  static constexpr uint64_t common_divisor(uint64_t a, uint64_t b) {
    while (b != 0) {
      const uint64_t rest = a % b;
      a = b;
      b = rest;
    }
    return a;
  }
};

// Every element somewhere, and a slot or more of each lane empty.
template <int rows, int columns, int simdgroups, uint64_t salt>
struct RandomLayout {
  static constexpr int threads = simdgroups * 32;
  static constexpr int capacity = (rows * columns + threads - 1) / threads + 1;
  static constexpr int band_rows = rows;
  static constexpr Permutation permutation{
      static_cast<uint64_t>(threads) * capacity,
      static_cast<uint64_t>(rows) << 40 ^ static_cast<uint64_t>(columns) << 20 ^ salt};

  static METALSIM_INLINE int first_row(int) { return 0; }

  static METALSIM_INLINE Place place(int simdgroup, int lane, int slot) {
    const int element = permutation(static_cast<uint64_t>(slot * threads + simdgroup * 32 + lane));
    return {{element % columns, element / columns}, element < rows * columns};
  }
};

template <int length>
struct RandomLineLayout {
  static constexpr int capacity = layouts_agree ? length : (length + 31) / 32 + 1;
  static constexpr Permutation permutation{static_cast<uint64_t>(layouts_agree ? 1 : 32) * capacity,
                                           static_cast<uint64_t>(length) << 32};

  static METALSIM_INLINE Place place(int lane, int slot) {
    const int index = layouts_agree ? (permutation(static_cast<uint64_t>(slot)) + lane) % length
                                    : permutation(static_cast<uint64_t>(slot * 32 + lane));
    return {{index, 0}, index < length};
  }
  static METALSIM_INLINE bool stores(int lane, int slot) {
    return !layouts_agree || place(lane, slot).index[0] % 32 == lane;
  }
};

template <int rows, int columns, int simdgroups, uint64_t salt>
using MatrixLayout =
    metal::conditional_t<is_random_layout, RandomLayout<rows, columns, simdgroups, salt>,
                         FragmentLayout<rows, columns, simdgroups>>;
template <int length, bool of_rows>
using LineLayout = metal::conditional_t<is_random_layout, RandomLineLayout<length>,
                                        FragmentLineLayout<length, of_rows>>;

}  // namespace metalsim
