// What matmul2d accepts, and the words with which it refuses. The rules are those of the
// static_asserts in Apple's MetalPerformancePrimitives (SDK of macOS 26) and its table of types.
#pragma once

#include "matmul2d_layouts.h"

namespace metalsim {

// Element types by kind; everything else is refused.
template <class T>
inline constexpr bool is_tensor_byte = __is_same(T, int8_t) || __is_same(T, uint8_t);
template <class T>
inline constexpr bool is_tensor_real = real<T>;
template <class T>
inline constexpr bool is_tensor_element = is_tensor_byte<T> || is_tensor_real<T>;
template <class T>
inline constexpr bool is_destination_element = is_tensor_real<T> || __is_same(T, int32_t);

template <class Left, class Right, class Result>
constexpr bool multiplies() {
  if constexpr (!is_tensor_element<Left> || !is_tensor_element<Right>) return false;
  constexpr bool bytes = is_tensor_byte<Left> && is_tensor_byte<Right>;
  constexpr bool wide = __is_same(Left, float) || __is_same(Right, float);
  if constexpr (__is_same(Result, int32_t)) return bytes && __is_same(Left, Right);
  if constexpr (__is_same(Result, float)) return !bytes;
  // half and bfloat results have an operand of their own type, and none that is wider.
  if constexpr (is_tensor_real<Result>)
    return !wide && (__is_same(Left, Result) || __is_same(Right, Result));
  return false;
}

constexpr bool is_side(int length) {
  return length == 1 || length == 2 || length == 4 || (length > 0 && length % 8 == 0);
}
constexpr bool is_small_side(int length) { return length == 16 || length == 32; }

template <int m, int n, int k, class Scope>
constexpr void check_shape() {
  static_assert(is_side(m) && is_side(n), "matmul2d: M and N must be 1, 2, 4 or a multiple of 8");
  if constexpr (!metal::is_execution_thread_v<Scope>) {
    static_assert(m % 16 == 0 || n % 16 == 0,
                  "matmul2d: at least one of M and N must be a multiple of 16");
    static_assert(is_dynamic_length(k) || k % 16 == 0,
                  "matmul2d: K must be dynamic or a multiple of 16");
  }
}

template <class T>
constexpr void check_operand() {
  static_assert(is_tensor<T> || metal::is_cooperative_tensor_v<T>,
                "matmul2d: an operand must be a tensor or a cooperative tensor");
  static_assert(!metal::is_const_v<typename T::element_type>,
                "matmul2d: Metal refuses tensors of const elements: make the tensor over a pointer "
                "to non-const");
  static_assert(T::extents_type::rank() == 2, "matmul2d: an operand must have rank 2");
}

template <class Left, class Right, class Result>
constexpr void check_types() {
  static_assert(multiplies<Left, Right, Result>(),
                "matmul2d: Metal does not multiply these element types into this one. A float "
                "result takes half, bfloat and float, one of them perhaps int8_t or uint8_t; half "
                "and bfloat results need an operand of their own type and no float; int32_t takes "
                "int8_t by int8_t and uint8_t by uint8_t");
}

template <int k, class Scope>
constexpr void check_input() {
  static_assert(metal::is_execution_simdgroup_v<Scope>,
                "matmul2d: cooperative tensors as inputs require a single simdgroup: "
                "execution_simdgroup");
  static_assert(!is_dynamic_length(k),
                "matmul2d: with cooperative tensors as inputs K cannot be dynamic");
}

template <int m, int n, int k>
constexpr void check_inputs() {
  static_assert(
      is_small_side(m) && is_small_side(n) && is_small_side(k) && (m == 32 || n == 32 || k == 32),
      "matmul2d: with both inputs cooperative M, N and K must be 16 or 32, one of them "
      "32");
}

// A cooperative tensor handed to an operation must be one that this operation made.
template <class Operation, Operand role, class Left, class Right, class T, class E, class Layout>
constexpr void check_origin(const metal::cooperative_tensor<T, E, Layout>*) {
  static_assert(!Layout::is_reduction, "matmul2d: a reduction is no operand");
  if constexpr (!Layout::is_reduction) {
    static_assert(Layout::operand == role,
                  "matmul2d: a cooperative tensor takes the place for which it was made: left "
                  "input, right input or destination");
    static_assert(metal::is_same_v<typename Layout::scope, typename Operation::scope>,
                  "matmul2d: the cooperative tensor was made for another execution scope");
    constexpr auto mine = Operation::descriptor, its = Layout::descriptor;
    static_assert(mine.m == its.m && mine.n == its.n &&
                      (role == Operand::destination || mine.k == its.k) &&
                      mine.transpose_left == its.transpose_left &&
                      mine.transpose_right == its.transpose_right,
                  "matmul2d: the cooperative tensor was made by an operation of another shape");
    static_assert(metal::is_same_v<typename Layout::left, Left> &&
                      metal::is_same_v<typename Layout::right, Right>,
                  "matmul2d: input types must match those for which the cooperative tensor was "
                  "made");
  }
}
template <class Operation, Operand role, class Left, class Right, class T>
constexpr void check_origin(const T*) {}

// The conversion of a destination into an input of the next operation.
template <class Operation, Operand role, class Source, class Layout, class Element>
constexpr void check_source() {
  constexpr auto next = Operation::descriptor;
  static_assert(!Layout::is_reduction, "matmul2d: the source must be a destination of a matmul2d");
  if constexpr (!Layout::is_reduction) {
    constexpr auto before = Layout::descriptor;
    static_assert(Layout::operand == Operand::destination,
                  "matmul2d: the source must be a destination of a matmul2d");
    static_assert(metal::is_execution_simdgroup_v<typename Layout::scope>,
                  "matmul2d: the source must belong to a single simdgroup");
    static_assert(metal::is_same_v<Source, Element>,
                  "matmul2d: the source's element type must be that of the input; accumulate in "
                  "it, or go through memory");
    if constexpr (role == Operand::left) {
      static_assert(!next.transpose_left, "matmul2d: a cooperative input cannot be transposed");
      static_assert(before.m == next.m && before.n == next.k,
                    "matmul2d: the source must be M x K of the next operation");
    } else {
      static_assert(!next.transpose_right, "matmul2d: a cooperative input cannot be transposed");
      static_assert(before.m == next.k && before.n == next.n,
                    "matmul2d: the source must be K x N of the next operation");
    }
  }
}

template <class Source, class Target>
constexpr void check_reduction(int) {
  using From = typename Source::layout;
  using To = typename Target::layout;
  static_assert(!From::is_reduction && To::is_reduction,
                "reduce_rows and reduce_columns: from a matmul2d destination into a tensor of "
                "get_row_ or get_column_reduction_destination_cooperative_tensor");
  static_assert(metal::is_execution_simdgroup_v<typename From::scope> &&
                    metal::is_execution_simdgroup_v<typename To::scope>,
                "reduce_rows and reduce_columns require a single simdgroup: execution_simdgroup");
  static_assert(From::descriptor == To::descriptor &&
                    metal::is_same_v<typename From::left, typename To::left> &&
                    metal::is_same_v<typename From::right, typename To::right>,
                "reduce_rows and reduce_columns: source and destination must be of one operation");
}

}  // namespace metalsim
