// How the operands and reductions of a matmul2d lie over the threads of its scope.
#pragma once

#include "cooperative_tensor.h"
#include "matmul2d_descriptor.h"

namespace metalsim {

using mpp::tensor_ops::matmul2d_descriptor;

constexpr bool is_dynamic_length(int length) {
  return length == dynamic_int || length == 0x7FFFFFFF || length == 0;
}
template <class Scope>
inline constexpr int simdgroups_of = static_cast<int>(Scope::static_size);

// One operand of one operation, spread over the threads of its scope.
template <matmul2d_descriptor operation, Operand role, class Scope, class Left, class Right,
          class Element>
struct OperandLayout {
  static constexpr matmul2d_descriptor descriptor = operation;
  static constexpr Operand operand = role;
  using scope = Scope;
  using left = Left;
  using right = Right;
  static constexpr bool is_reduction = false;

  // As it is stored: a transposed operand has its inner dimension down. (Inputs have no dynamic
  // depth; a type that is refused for it should not fail here first.)
  static constexpr int depth = is_dynamic_length(descriptor.k) ? 16 : descriptor.k;
  static constexpr bool is_left = role == Operand::left, is_right = role == Operand::right;
  static constexpr bool down = is_left ? descriptor.transpose_left : !descriptor.transpose_right;
  static constexpr int outer = is_right ? descriptor.n : descriptor.m;
  static constexpr bool is_input = is_left || is_right;
  static constexpr int rows = is_input && down ? depth : outer;
  static constexpr int columns = !is_input ? descriptor.n : down ? outer : depth;

  static constexpr bool in_thread = metal::is_execution_thread_v<Scope>;
  static constexpr int simdgroups = simdgroups_of<Scope>;
  static constexpr uint64_t salt = layouts_agree
                                       ? 0
                                       : static_cast<uint64_t>(role) ^
                                             static_cast<uint64_t>(scalar_type<Element>()) << 2 ^
                                             static_cast<uint64_t>(depth) << 6;
  using Matrix = MatrixLayout<rows, columns, simdgroups, salt>;
  static constexpr int capacity = in_thread ? rows * columns : Matrix::capacity;
  static constexpr int band_rows = Matrix::band_rows;

  static METALSIM_INLINE int first_row(int simdgroup) { return Matrix::first_row(simdgroup); }
  static METALSIM_INLINE Place place(int slot) {
    if constexpr (in_thread) return {{slot % columns, slot / columns}, true};
    const int simdgroup =
        simdgroups > 1 ? static_cast<int>(builtin::simdgroup_index_in_threadgroup()) : 0;
    return Matrix::place(simdgroup, static_cast<int>(backend::lane()), slot);
  }
};

// What reduce_rows and reduce_columns leave: one element a row or column.
template <matmul2d_descriptor operation, int kept, class Scope, class Left, class Right>
struct ReductionLayout {
  static constexpr matmul2d_descriptor descriptor = operation;
  using scope = Scope;
  using left = Left;
  using right = Right;
  static constexpr bool is_reduction = true;
  static constexpr int kept_dimension = kept;  // of the matrix's index: 1 keeps rows
  static constexpr int length = kept == 1 ? descriptor.m : descriptor.n;
  using Line = LineLayout<length, kept == 1>;
  static constexpr int capacity = Line::capacity;

  static METALSIM_INLINE Place place(int slot) {
    return Line::place(static_cast<int>(backend::lane()), slot);
  }
  static METALSIM_INLINE bool stores(int slot) {
    return Line::stores(static_cast<int>(backend::lane()), slot);
  }
};

template <class T>
using element_of_operand = typename metal::remove_cvref_t<T>::value_type;

}  // namespace metalsim
