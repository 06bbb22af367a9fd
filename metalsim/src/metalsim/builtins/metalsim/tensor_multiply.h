// How matmul2d is carried out: the lanes of a simdgroup lay their operands side by side in its
// workspace as plain matrices, the last to arrive lets the machine multiply them, and each takes
// back what it owns. Several simdgroups share a destination and do not wait for one another.
#pragma once

#include "tensor_rules.h"

namespace metalsim {

// Integer products are exact in int32_t, all others accumulate in float.
template <class Result>
using Accumulator = metal::conditional_t<__is_same(Result, int32_t), int32_t, float>;

// An operand as it enters a product. With relaxed precision floats keep the 10 bits of mantissa
// that an M5's matrix units read.
template <class Wide, bool relaxed, class T>
METALSIM_INLINE Wide widen(T value) {
  if constexpr (relaxed && __is_same(T, float))
    return __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, value) & 0xFFFFE000u);
  else
    return static_cast<Wide>(value);
}

// A block of an operand inside the workspace: `rows` by `columns` of what is stored, transposed on
// the way if it is multiplied so.
template <class Wide, bool transposed, bool relaxed>
struct Block {
  Wide* elements;
  int stride;

  METALSIM_INLINE Wide& at(int row, int column) const {
    return transposed ? elements[column * stride + row] : elements[row * stride + column];
  }

  template <class T, class E, class Layout>
  METALSIM_UNOBSERVED void take(const metal::cooperative_tensor<T, E, Layout>& operand) const {
    for (int slot = 0; slot < Layout::capacity; ++slot) {
      const Place place = Layout::place(slot);
      if (place.valid) at(place.index[1], place.index[0]) = widen<Wide, relaxed>(operand[slot]);
    }
  }

  // From memory, four neighbours of a row a lane and turn; zeros outside of the limits.
  template <int rows, int columns, class Tensor>
  METALSIM_INLINE void load(const Tensor& operand, int first_row, int first_column, long row_limit,
                            long column_limit) const {
    constexpr int quads = (columns + 3) / 4;
    const auto* data = operand.get_data_handle();
    const long across = operand.get_stride(0), down = operand.get_stride(1);
    for (int quad = static_cast<int>(backend::lane()); quad < rows * quads; quad += 32) {
      const int row = quad / quads, column = quad % quads * 4;
      const long from_row = first_row + row, from_column = first_column + column;
      const auto* source = data + from_row * down + from_column * across;
      if (across == 1 && from_row < row_limit && from_column + 4 <= column_limit &&
          column + 4 <= columns) {
        put<4>(row, column,
               {widen<Wide, relaxed>(source[0]), widen<Wide, relaxed>(source[1]),
                widen<Wide, relaxed>(source[2]), widen<Wide, relaxed>(source[3])});
        continue;
      }
      for (int i = 0; i < 4 && column + i < columns; ++i) {
        const bool inside = from_row < row_limit && from_column + i < column_limit;
        put<1>(row, column + i,
               {inside ? widen<Wide, relaxed>(source[i * across]) : Wide(0), 0, 0, 0});
      }
    }
  }

 private:
  struct Quad {
    Wide values[4];
  };
  template <int count>
  METALSIM_UNOBSERVED void put(int row, int column, Quad quad) const {
    for (int i = 0; i < count; ++i) at(row, column + i) = quad.values[i];
  }
};

METALSIM_INLINE long least(long a, long b) { return a < b ? a : b; }

// One product of a simdgroup, or of its part in a product of several.
template <class Operation, class Left, class Right, class Destination>
struct SimdgroupMultiply {
  using Result = typename Destination::value_type;
  using Wide = Accumulator<Result>;
  using Layout = typename Operation::template DestinationLayout<Left, Right, Result>;

  static constexpr auto descriptor = Operation::descriptor;
  static constexpr int m = descriptor.m, n = descriptor.n, simdgroups = Operation::simdgroups;
  static constexpr bool left_in_memory = is_tensor<Left>, right_in_memory = is_tensor<Right>;
  static constexpr bool in_memory = is_tensor<Destination>;
  static constexpr bool adds = descriptor.accumulates() || (in_memory && multiply_adds_to_memory);
  // The inner dimension goes through the workspace in pieces, unless a lane holds all of it.
  static constexpr bool in_pieces =
      left_in_memory && right_in_memory && (is_dynamic_length(descriptor.k) || descriptor.k > 64);
  static constexpr int piece = in_pieces ? 64 : descriptor.k;

  static constexpr int band = Layout::band_rows;
  static constexpr int stride = (n + 15) / 16 * 16;  // of a row of the right operand and the sums
  static constexpr uint32_t left_bytes = band * piece * 4, right_bytes = piece * stride * 4;
  static constexpr uint32_t sums_bytes = band * stride * 4;
  static_assert(left_bytes + right_bytes + sums_bytes <= workspace_bytes,
                "matmul2d: metalsim has no room for a product this large; make M, N or K smaller");

  static METALSIM_INLINE void run(const Left& left, const Right& right, Destination& destination,
                                  uint site) {
    if constexpr (simdgroups > 1) backend::enter_scope(simdgroups, "matmul2d", site);
    const int simdgroup =
        simdgroups > 1 ? static_cast<int>(builtin::simdgroup_index_in_threadgroup()) : 0;
    const int first_row = Layout::first_row(simdgroup);
    unsigned char* workspace = backend::tensor_workspace(site);
    Wide* sums = reinterpret_cast<Wide*>(workspace);
    Wide* a = reinterpret_cast<Wide*>(workspace + sums_bytes);
    Wide* b = reinterpret_cast<Wide*>(workspace + sums_bytes + left_bytes);

    begin(destination, sums, first_row);
    const long depth = depth_of(left, right);
    if (backend::lane() == 0)
      backend::count(tensor_multiply_adds, static_cast<uint64_t>(m) * n * depth / simdgroups);
    const long rows = least(band, m - first_row);
    long start = 0;
    do {
      const int length = static_cast<int>(least(piece, depth - start));
      put_left(left, a, first_row, start, depth);
      put_right(right, b, start, depth);
      const bool last = start + piece >= depth;
      backend::multiply_tensors(
          {a, b, sums, static_cast<uint32_t>(rows < 0 ? 0 : rows), piece, stride,
           static_cast<uint32_t>(length), __is_same(Wide, int32_t), last},
          site);
      start += piece;
    } while (start < depth);
    end(destination, sums, first_row);
  }

 private:
  static METALSIM_INLINE long depth_of([[maybe_unused]] const Left& left, const Right&) {
    if constexpr (!is_dynamic_length(descriptor.k))
      return descriptor.k;
    else
      return left.get_extent(descriptor.transpose_left ? 1 : 0);
  }

  static METALSIM_INLINE void put_left(const Left& left, Wide* a, int first_row, long start,
                                       long depth) {
    constexpr bool transposed = descriptor.transpose_left;
    const Block<Wide, transposed, descriptor.relaxed_precision> block = {a, piece};
    if constexpr (!left_in_memory) {
      block.take(left);
    } else if constexpr (transposed) {
      block.template load<piece, band>(left, start, first_row, least(left.get_extent(1), depth),
                                       least(left.get_extent(0), m));
    } else {
      block.template load<band, piece>(left, first_row, start, least(left.get_extent(1), m),
                                       least(left.get_extent(0), depth));
    }
  }

  static METALSIM_INLINE void put_right(const Right& right, Wide* b, long start, long depth) {
    constexpr bool transposed = descriptor.transpose_right;
    const Block<Wide, transposed, descriptor.relaxed_precision> block = {b, stride};
    if constexpr (!right_in_memory) {
      block.take(right);
    } else if constexpr (transposed) {
      block.template load<n, piece>(right, 0, start, right.get_extent(1),
                                    least(right.get_extent(0), depth));
    } else {
      block.template load<piece, n>(right, start, 0, least(right.get_extent(1), depth),
                                    right.get_extent(0));
    }
  }

  // The sums that this lane owns: what they start from, and where they go.
  static METALSIM_INLINE Wide& owned(Wide* sums, const Place& place, int first_row) {
    return sums[(place.index[1] - first_row) * stride + place.index[0]];
  }
  static METALSIM_UNOBSERVED Wide read(Wide* sums, const Place& place, int first_row) {
    return owned(sums, place, first_row);
  }
  static METALSIM_UNOBSERVED void write(Wide* sums, const Place& place, int first_row, Wide sum) {
    owned(sums, place, first_row) = sum;
  }

  static METALSIM_INLINE void begin(const Destination& destination, Wide* sums, int first_row) {
    if constexpr (adds && in_memory) {
      for (int slot = 0; slot < Layout::capacity; ++slot) {
        const Place place = Layout::place(slot);
        if (!place.valid) continue;
        const bool here = inside(destination, place);
        write(sums, place, first_row,
              here ? static_cast<Wide>(destination[place.index[0], place.index[1]]) : Wide(0));
      }
    } else {
      take_owned(destination, sums, first_row);
    }
  }
  static METALSIM_UNOBSERVED void take_owned(const Destination& destination, Wide* sums,
                                             int first_row) {
    for (int slot = 0; slot < Layout::capacity; ++slot) {
      const Place place = Layout::place(slot);
      if (!place.valid) continue;
      if constexpr (adds && !in_memory)
        owned(sums, place, first_row) = static_cast<Wide>(destination[slot]);
      else
        owned(sums, place, first_row) = 0;
    }
  }

  static METALSIM_INLINE void end(Destination& destination, Wide* sums, int first_row) {
    if constexpr (in_memory) {
      for (int slot = 0; slot < Layout::capacity; ++slot) {
        const Place place = Layout::place(slot);
        if (!place.valid || !inside(destination, place)) continue;
        destination[place.index[0], place.index[1]] =
            static_cast<Result>(read(sums, place, first_row));
      }
    } else {
      give_owned(destination, sums, first_row);
    }
  }
  static METALSIM_UNOBSERVED void give_owned(Destination& destination, Wide* sums, int first_row) {
    for (int slot = 0; slot < Layout::capacity; ++slot) {
      const Place place = Layout::place(slot);
      if (place.valid) destination[slot] = static_cast<Result>(owned(sums, place, first_row));
    }
  }

  static METALSIM_INLINE bool inside(const Destination& memory, const Place& place) {
    return place.index[0] < memory.get_extent(0) && place.index[1] < memory.get_extent(1);
  }
};

// The same by one thread alone.
template <class Operation, class Left, class Right, class Destination>
METALSIM_INLINE void multiply_in_thread(const Left& left, const Right& right,
                                        Destination& destination) {
  using Result = typename Destination::value_type;
  using Wide = Accumulator<Result>;
  constexpr auto descriptor = Operation::descriptor;
  constexpr bool relaxed = descriptor.relaxed_precision;
  constexpr bool in_memory = is_tensor<Destination>;
  constexpr bool adds = descriptor.accumulates() || (in_memory && multiply_adds_to_memory);
  const auto element = [](const auto& tensor, bool transposed, long row, long column) {
    const long x = transposed ? row : column, y = transposed ? column : row;
    if (x >= tensor.get_extent(0) || y >= tensor.get_extent(1)) return Wide(0);
    return widen<Wide, relaxed>(tensor[x, y]);
  };
  const long depth = is_dynamic_length(descriptor.k)
                         ? static_cast<long>(left.get_extent(descriptor.transpose_left ? 1 : 0))
                         : descriptor.k;
  backend::count(tensor_multiply_adds, static_cast<uint64_t>(descriptor.m) * descriptor.n * depth);
  for (int row = 0; row < descriptor.m; ++row) {
    for (int column = 0; column < descriptor.n; ++column) {
      Result* target = nullptr;
      if constexpr (!in_memory)
        target = &destination[row * descriptor.n + column];
      else if (column < destination.get_extent(0) && row < destination.get_extent(1))
        target = &destination[column, row];
      if (target == nullptr) continue;
      Wide sum = adds ? static_cast<Wide>(*target) : Wide(0);
      for (long k = 0; k < depth; ++k)
        sum += element(left, descriptor.transpose_left, row, k) *
               element(right, descriptor.transpose_right, k, column);
      *target = static_cast<Result>(sum);
    }
  }
}

}  // namespace metalsim
