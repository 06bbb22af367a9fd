// <MetalPerformancePrimitives/MetalPerformancePrimitives.h>: matmul2d, its cooperative tensors and
// their reductions.
#pragma once

#include "numeric_limits.h"
#include "tensor_multiply.h"

namespace mpp::tensor_ops {

enum class reduction_operation { sum, max, min };

struct matmul2d_descriptor {
  enum class mode { multiply, multiply_accumulate };

  int m, n, k;
  bool transpose_left, transpose_right, relaxed_precision;
  mode matmul_mode;

  METALSIM_INLINE constexpr matmul2d_descriptor(int m, int n, int k = metalsim::dynamic_int,
                                                bool transpose_left = false,
                                                bool transpose_right = false,
                                                bool relaxed_precision = false,
                                                mode matmul_mode = mode::multiply)
      : m(m),
        n(n),
        k(k),
        transpose_left(transpose_left),
        transpose_right(transpose_right),
        relaxed_precision(relaxed_precision),
        matmul_mode(matmul_mode) {}

  METALSIM_INLINE constexpr bool operator==(const matmul2d_descriptor&) const = default;
  METALSIM_INLINE constexpr bool accumulates() const {
    return matmul_mode == mode::multiply_accumulate;
  }
};

template <class T>
inline constexpr T dynamic_length_v = metal::numeric_limits<T>::max();

template <class T>
struct reduction_operation_identity {
  static constexpr T sum_identity = T(0);
  static constexpr T max_identity = metal::numeric_limits<T>::lowest();
  static constexpr T min_identity = metal::numeric_limits<T>::max();
};

}  // namespace mpp::tensor_ops

namespace metalsim {

using mpp::tensor_ops::matmul2d_descriptor;

// One operand of one operation, spread over the threads of its scope.
template <matmul2d_descriptor operation, Operand role, class Scope, class Left, class Right>
struct OperandLayout {
  static constexpr matmul2d_descriptor descriptor = operation;
  static constexpr Operand operand = role;
  using scope = Scope;
  using left = Left;
  using right = Right;
  static constexpr bool is_reduction = false;

  // As it is stored: a transposed operand has its inner dimension down.
  static constexpr int rows =
      role == Operand::left    ? (descriptor.transpose_left ? descriptor.k : descriptor.m)
      : role == Operand::right ? (descriptor.transpose_right ? descriptor.n : descriptor.k)
                               : descriptor.m;
  static constexpr int columns =
      role == Operand::left    ? (descriptor.transpose_left ? descriptor.m : descriptor.k)
      : role == Operand::right ? (descriptor.transpose_right ? descriptor.k : descriptor.n)
                               : descriptor.n;

  static constexpr bool in_thread = metal::is_execution_thread_v<Scope>;
  static constexpr int simdgroups = simdgroups_of<Scope>;
  using Matrix = MatrixLayout<rows, columns, simdgroups, role>;
  static constexpr int capacity = in_thread ? rows * columns : Matrix::capacity;
  static constexpr int band_rows = Matrix::band_rows;

  static METALSIM_INLINE int first_row(int simdgroup) { return Matrix::first_row(simdgroup); }
  static METALSIM_INLINE Place place(int slot) {
    if constexpr (in_thread) return {{slot % columns, slot / columns}, true};
    const int simdgroup =
        simdgroups > 1 ? static_cast<int>(backend::current()->simdgroup->index) : 0;
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
};

template <class T>
using element_of_operand = typename metal::remove_cvref_t<T>::value_type;

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
template <class Operation, Operand role, class Element, class Source>
constexpr void check_source() {
  using Layout = typename Source::layout;
  constexpr auto next = Operation::descriptor;
  check_input<next.k, typename Operation::scope>();
  static_assert(!Layout::is_reduction, "matmul2d: the source must be a destination of a matmul2d");
  if constexpr (!Layout::is_reduction) {
    constexpr auto before = Layout::descriptor;
    static_assert(Layout::operand == Operand::destination,
                  "matmul2d: the source must be a destination of a matmul2d");
    static_assert(metal::is_execution_simdgroup_v<typename Layout::scope>,
                  "matmul2d: the source must belong to a single simdgroup");
    static_assert(metal::is_same_v<typename Source::value_type, Element>,
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

template <class T>
METALSIM_INLINE T reduced(mpp::tensor_ops::reduction_operation operation, T a, T b) {
  switch (operation) {
    case mpp::tensor_ops::reduction_operation::max:
      return a < b ? b : a;
    case mpp::tensor_ops::reduction_operation::min:
      return b < a ? b : a;
    default:
      return static_cast<T>(a + b);
  }
}

// The matrix goes through the workspace; each lane then adds up the rows (or columns) it owns.
template <int kept, class T, class Source, class Target>
METALSIM_INLINE void reduce(const Source& source, Target& target,
                            mpp::tensor_ops::reduction_operation operation, T identity,
                            const char* name, uint line) {
  check_reduction<Source, Target>(0);
  using From = typename Source::layout;
  using To = typename Target::layout;
  static_assert(To::kept_dimension == kept,
                "reduce_rows takes a row reduction, reduce_columns a column reduction");
  Fiber* fiber = backend::current();
  constexpr int elements = From::rows * From::columns;
  static_assert(2 * elements * sizeof(T) <= workspace_bytes, "too large a matrix to reduce");
  T* matrix =
      reinterpret_cast<T*>(metalsim_tensor_workspace(fiber)) + fiber->simdgroup->turn * elements;
  for (int slot = 0; slot < From::capacity; ++slot) {
    const Place place = From::place(slot);
    if (place.valid) matrix[place.index[1] * From::columns + place.index[0]] = source[slot];
  }
  backend::exchange_tensors(name, line);
  for (int slot = 0; slot < To::capacity; ++slot) {
    const Place place = To::place(slot);
    if (!place.valid) continue;
    constexpr int step = kept == 1 ? 1 : From::columns;
    const T* first = matrix + place.index[0] * (kept == 1 ? From::columns : 1);
    T result = identity;
    for (int index = 0; index < elements / To::length; ++index)
      result = reduced(operation, result, first[index * step]);
    target[slot] = result;
  }
}

}  // namespace metalsim

namespace mpp::tensor_ops {

template <matmul2d_descriptor Descriptor, class Scope>
class matmul2d {
  static_assert(metal::is_execution_thread_v<Scope> || metal::is_execution_simdgroups_v<Scope>,
                "matmul2d: the scope must be execution_thread, execution_simdgroup or "
                "execution_simdgroups<N>");

  template <metalsim::Operand role, class Left, class Right>
  using Layout = metalsim::OperandLayout<Descriptor, role, Scope, Left, Right>;
  template <class Element, class Coordinate, class Layout>
  using Matrix = metal::cooperative_tensor<Element, metal::dextents<Coordinate, 2>, Layout>;
  template <class Element, class Coordinate, int kept, class Left, class Right>
  using Line =
      metal::cooperative_tensor<Element, metal::dextents<Coordinate, 1>,
                                metalsim::ReductionLayout<Descriptor, kept, Scope, Left, Right>>;

 public:
  static constexpr matmul2d_descriptor descriptor = Descriptor;
  static constexpr int simdgroups = metalsim::simdgroups_of<Scope>;
  using scope = Scope;
  template <class Left, class Right>
  using DestinationLayout =
      Layout<metalsim::Operand::destination, metalsim::element_of_operand<Left>,
             metalsim::element_of_operand<Right>>;

  template <class LeftElement, class RightElement, class Element, class Coordinate = int>
  using cooperative_tensor_left_input_t =
      Matrix<LeftElement, Coordinate, Layout<metalsim::Operand::left, LeftElement, RightElement>>;
  template <class LeftElement, class RightElement, class Element, class Coordinate = int>
  using cooperative_tensor_right_input_t =
      Matrix<RightElement, Coordinate, Layout<metalsim::Operand::right, LeftElement, RightElement>>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_destination_t =
      Matrix<Element, Coordinate, DestinationLayout<Left, Right>>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_row_reduction_destination_t =
      Line<Element, Coordinate, 1, metalsim::element_of_operand<Left>,
           metalsim::element_of_operand<Right>>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_column_reduction_destination_t =
      Line<Element, Coordinate, 0, metalsim::element_of_operand<Left>,
           metalsim::element_of_operand<Right>>;

  // The inputs' types are named by their elements, the destination's by its operands.
  template <class LeftElement, class RightElement, class Element, class Coordinate = int>
  METALSIM_INLINE auto get_left_input_cooperative_tensor() const {
    check_input<LeftElement, RightElement, Element>();
    return cooperative_tensor_left_input_t<LeftElement, RightElement, Element, Coordinate>();
  }
  template <class LeftElement, class RightElement, class Element, class Coordinate = int>
  METALSIM_INLINE auto get_right_input_cooperative_tensor() const {
    check_input<LeftElement, RightElement, Element>();
    return cooperative_tensor_right_input_t<LeftElement, RightElement, Element, Coordinate>();
  }
  template <class Left, class Right, class Element, class Coordinate = int>
  METALSIM_INLINE auto get_destination_cooperative_tensor() const {
    check_destination<Left, Right, Element>();
    return cooperative_tensor_destination_t<Left, Right, Element, Coordinate>();
  }
  template <class Left, class Right, class Element, class Coordinate = int>
  METALSIM_INLINE auto get_row_reduction_destination_cooperative_tensor() const {
    check_destination<Left, Right, Element>();
    return cooperative_tensor_row_reduction_destination_t<Left, Right, Element, Coordinate>();
  }
  template <class Left, class Right, class Element, class Coordinate = int>
  METALSIM_INLINE auto get_column_reduction_destination_cooperative_tensor() const {
    check_destination<Left, Right, Element>();
    return cooperative_tensor_column_reduction_destination_t<Left, Right, Element, Coordinate>();
  }

  // A destination as the next input, slot by slot. Where the layouts differ, which only
  // is_compatible_as_... tells, the elements come out in the wrong places, as on the GPU.
  template <class LeftElement, class RightElement, class Element, class Coordinate = int, class T,
            class E, class SourceLayout>
  METALSIM_INLINE auto get_left_input_cooperative_tensor(
      const metal::cooperative_tensor<T, E, SourceLayout>& source) const {
    auto result =
        get_left_input_cooperative_tensor<LeftElement, RightElement, Element, Coordinate>();
    return converted<metalsim::Operand::left>(source, result);
  }
  template <class LeftElement, class RightElement, class Element, class Coordinate = int, class T,
            class E, class SourceLayout>
  METALSIM_INLINE auto get_right_input_cooperative_tensor(
      const metal::cooperative_tensor<T, E, SourceLayout>& source) const {
    auto result =
        get_right_input_cooperative_tensor<LeftElement, RightElement, Element, Coordinate>();
    return converted<metalsim::Operand::right>(source, result);
  }
  template <class LeftElement, class RightElement, class Element, class T, class E,
            class SourceLayout>
  METALSIM_INLINE bool is_compatible_as_left_input(
      const metal::cooperative_tensor<T, E, SourceLayout>&) const {
    return is_compatible<T, SourceLayout, LeftElement>(Descriptor.m, Descriptor.k);
  }
  template <class LeftElement, class RightElement, class Element, class T, class E,
            class SourceLayout>
  METALSIM_INLINE bool is_compatible_as_right_input(
      const metal::cooperative_tensor<T, E, SourceLayout>&) const {
    return is_compatible<T, SourceLayout, RightElement>(Descriptor.k, Descriptor.n);
  }

  template <class Left, class Right, class Destination>
  METALSIM_INLINE void run(Left& left, Right& right, Destination& destination,
                           uint line = __builtin_LINE()) const {
    metalsim::check_operand<Left>();
    metalsim::check_operand<Right>();
    metalsim::check_operand<Destination>();
    using LeftElement = typename Left::value_type;
    using RightElement = typename Right::value_type;
    metalsim::check_types<LeftElement, RightElement, typename Destination::value_type>();
    metalsim::check_shape<Descriptor.m, Descriptor.n, Descriptor.k, Scope>();
    constexpr bool cooperative_left = metal::is_cooperative_tensor_v<Left>;
    constexpr bool cooperative_right = metal::is_cooperative_tensor_v<Right>;
    if constexpr (cooperative_left || cooperative_right)
      metalsim::check_input<Descriptor.k, Scope>();
    if constexpr (cooperative_left && cooperative_right)
      metalsim::check_inputs<Descriptor.m, Descriptor.n, Descriptor.k>();
    using metalsim::Operand;
    metalsim::check_origin<matmul2d, Operand::left, LeftElement, RightElement>(&left);
    metalsim::check_origin<matmul2d, Operand::right, LeftElement, RightElement>(&right);
    metalsim::check_origin<matmul2d, Operand::destination, LeftElement, RightElement>(&destination);
    if constexpr (metal::is_execution_thread_v<Scope>)
      metalsim::multiply_in_thread<matmul2d>(left, right, destination);
    else
      metalsim::SimdgroupMultiply<matmul2d, Left, Right, Destination>::run(left, right, destination,
                                                                           line);
  }

 private:
  template <class LeftElement, class RightElement, class Element>
  static constexpr void check_input() {
    metalsim::check_types<LeftElement, RightElement, Element>();
    metalsim::check_input<Descriptor.k, Scope>();
  }

  template <class Left, class Right, class Element>
  static constexpr void check_destination() {
    static_assert((metalsim::is_tensor<Left> || metal::is_cooperative_tensor_v<Left>) &&
                      (metalsim::is_tensor<Right> || metal::is_cooperative_tensor_v<Right>),
                  "matmul2d: destinations are named by the types of their operands, as in "
                  "get_destination_cooperative_tensor<decltype(left), decltype(right), float>()");
    if constexpr (requires {
                    typename Left::value_type;
                    typename Right::value_type;
                  })
      metalsim::check_types<typename Left::value_type, typename Right::value_type, Element>();
  }

  template <metalsim::Operand role, class Source, class Target>
  static METALSIM_INLINE Target converted(const Source& source, Target& target) {
    metalsim::check_source<matmul2d, role, typename Target::value_type, Source>();
    for (int slot = 0; slot < Target::layout::capacity; ++slot) target[slot] = source[slot];
    return target;
  }

  template <class T, class SourceLayout, class Element>
  static METALSIM_INLINE constexpr bool is_compatible(int rows, int columns) {
    if constexpr (SourceLayout::is_reduction)
      return false;
    else
      return metalsim::layouts_agree && metal::is_same_v<T, Element> &&
             SourceLayout::rows == rows && SourceLayout::columns == columns;
  }
};

// The identity of a sum by default, whatever the operation: a maximum of negative numbers needs its
// own.
template <class T, class SourceExtents, class TargetExtents, class SourceLayout, class TargetLayout>
METALSIM_INLINE void reduce_rows(
    metal::cooperative_tensor<T, SourceExtents, SourceLayout>& source,
    metal::cooperative_tensor<T, TargetExtents, TargetLayout>& destination,
    reduction_operation operation = reduction_operation::sum,
    T identity = reduction_operation_identity<T>::sum_identity, uint line = __builtin_LINE()) {
  metalsim::reduce<1>(source, destination, operation, identity, "reduce_rows", line);
}
template <class T, class SourceExtents, class TargetExtents, class SourceLayout, class TargetLayout>
METALSIM_INLINE void reduce_columns(
    metal::cooperative_tensor<T, SourceExtents, SourceLayout>& source,
    metal::cooperative_tensor<T, TargetExtents, TargetLayout>& destination,
    reduction_operation operation = reduction_operation::sum,
    T identity = reduction_operation_identity<T>::sum_identity, uint line = __builtin_LINE()) {
  metalsim::reduce<0>(source, destination, operation, identity, "reduce_columns", line);
}

// Whether destination.map_iterator takes iterators of `source`.
template <class A, class B, class SourceExtents, class TargetExtents, class SourceLayout,
          class TargetLayout>
METALSIM_INLINE bool is_iterator_compatible(
    const metal::cooperative_tensor<A, SourceExtents, SourceLayout>&,
    const metal::cooperative_tensor<B, TargetExtents, TargetLayout>&) {
  if constexpr (SourceLayout::is_reduction || !TargetLayout::is_reduction) {
    return false;
  } else {
    constexpr int length =
        TargetLayout::kept_dimension == 1 ? SourceLayout::descriptor.m : SourceLayout::descriptor.n;
    return metalsim::layouts_agree && metal::is_same_v<A, B> &&
           metal::is_execution_simdgroup_v<typename SourceLayout::scope> &&
           metal::is_execution_simdgroup_v<typename TargetLayout::scope> &&
           TargetLayout::length == length;
  }
}

}  // namespace mpp::tensor_ops
