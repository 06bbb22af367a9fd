// <MetalPerformancePrimitives/MetalPerformancePrimitives.h>: matmul2d, its cooperative tensors and
// their reductions.
#pragma once

#include "tensor_multiply.h"
#include "tensor_reduce.h"

namespace mpp::tensor_ops {

template <matmul2d_descriptor Descriptor, class Scope>
class matmul2d {
  static_assert(metal::is_execution_thread_v<Scope> || metal::is_execution_simdgroups_v<Scope>,
                "matmul2d: the scope must be execution_thread, execution_simdgroup or "
                "execution_simdgroups<N>");

  template <metalsim::Operand role, class Left, class Right, class Element>
  using Layout = metalsim::OperandLayout<Descriptor, role, Scope, Left, Right, Element>;
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
  template <class Left, class Right, class Element>
  using DestinationLayout =
      Layout<metalsim::Operand::destination, metalsim::element_of_operand<Left>,
             metalsim::element_of_operand<Right>, Element>;

  template <class LeftElement, class RightElement, class Element, class Coordinate = int>
  using cooperative_tensor_left_input_t =
      Matrix<LeftElement, Coordinate,
             Layout<metalsim::Operand::left, LeftElement, RightElement, LeftElement>>;
  template <class LeftElement, class RightElement, class Element, class Coordinate = int>
  using cooperative_tensor_right_input_t =
      Matrix<RightElement, Coordinate,
             Layout<metalsim::Operand::right, LeftElement, RightElement, RightElement>>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_destination_t =
      Matrix<Element, Coordinate, DestinationLayout<Left, Right, Element>>;
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
  METALSIM_INLINE cooperative_tensor_left_input_t<LeftElement, RightElement, Element, Coordinate>
  get_left_input_cooperative_tensor() const {
    check_input<LeftElement, RightElement, Element>();
    return {};
  }
  template <class LeftElement, class RightElement, class Element, class Coordinate = int>
  METALSIM_INLINE cooperative_tensor_right_input_t<LeftElement, RightElement, Element, Coordinate>
  get_right_input_cooperative_tensor() const {
    check_input<LeftElement, RightElement, Element>();
    return {};
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
  METALSIM_INLINE cooperative_tensor_left_input_t<LeftElement, RightElement, Element, Coordinate>
  get_left_input_cooperative_tensor(
      const metal::cooperative_tensor<T, E, SourceLayout>& source) const {
    using Target = cooperative_tensor_left_input_t<LeftElement, RightElement, Element, Coordinate>;
    check_input<LeftElement, RightElement, Element>();
    metalsim::check_source<matmul2d, metalsim::Operand::left, T, SourceLayout, LeftElement>();
    return converted<Target>(source);
  }
  template <class LeftElement, class RightElement, class Element, class Coordinate = int, class T,
            class E, class SourceLayout>
  METALSIM_INLINE cooperative_tensor_right_input_t<LeftElement, RightElement, Element, Coordinate>
  get_right_input_cooperative_tensor(
      const metal::cooperative_tensor<T, E, SourceLayout>& source) const {
    using Target = cooperative_tensor_right_input_t<LeftElement, RightElement, Element, Coordinate>;
    check_input<LeftElement, RightElement, Element>();
    metalsim::check_source<matmul2d, metalsim::Operand::right, T, SourceLayout, RightElement>();
    return converted<Target>(source);
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
                           uint site = METALSIM_SITE) const {
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
                                                                           site);
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

  template <class Target, class Source>
  static METALSIM_INLINE Target converted(const Source& source) {
    Target target;
    constexpr int own = Target::layout::capacity, given = Source::layout::capacity;
    for (int slot = 0; slot < (own < given ? own : given); ++slot) target[slot] = source[slot];
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
    T identity = reduction_operation_identity<T>::sum_identity, uint site = METALSIM_SITE) {
  metalsim::reduce<1>(source, destination, operation, identity, "reduce_rows", site);
}
template <class T, class SourceExtents, class TargetExtents, class SourceLayout, class TargetLayout>
METALSIM_INLINE void reduce_columns(
    metal::cooperative_tensor<T, SourceExtents, SourceLayout>& source,
    metal::cooperative_tensor<T, TargetExtents, TargetLayout>& destination,
    reduction_operation operation = reduction_operation::sum,
    T identity = reduction_operation_identity<T>::sum_identity, uint site = METALSIM_SITE) {
  metalsim::reduce<0>(source, destination, operation, identity, "reduce_columns", site);
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
