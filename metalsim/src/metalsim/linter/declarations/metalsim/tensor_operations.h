// <MetalPerformancePrimitives/MetalPerformancePrimitives.h>: matmul2d and its tensors.
#pragma once

#include <metalsim/matmul2d_descriptor.h>

#include "cooperative_tensor.h"

namespace mpp::tensor_ops {

template <int Descriptor, class Scope>
struct matmul2d {
  using scope = Scope;
  template <int rank, class Element, class Coordinate>
  using Cooperative = metal::cooperative_tensor<Element, metal::dextents<Coordinate, rank>, Scope>;

  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_left_input_t = Cooperative<2, Left, Coordinate>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_right_input_t = Cooperative<2, Right, Coordinate>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_destination_t = Cooperative<2, Element, Coordinate>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_row_reduction_destination_t = Cooperative<1, Element, Coordinate>;
  template <class Left, class Right, class Element, class Coordinate = int>
  using cooperative_tensor_column_reduction_destination_t = Cooperative<1, Element, Coordinate>;

  template <class Left, class Right, class Element, class Coordinate = int, class... Source>
  Cooperative<2, Left, Coordinate> get_left_input_cooperative_tensor(
      const METALSIM_THREAD Source&...) const;
  template <class Left, class Right, class Element, class Coordinate = int, class... Source>
  Cooperative<2, Right, Coordinate> get_right_input_cooperative_tensor(
      const METALSIM_THREAD Source&...) const;
  template <class Left, class Right, class Element, class Coordinate = int>
  Cooperative<2, Element, Coordinate> get_destination_cooperative_tensor() const;
  template <class Left, class Right, class Element, class Coordinate = int>
  Cooperative<1, Element, Coordinate> get_row_reduction_destination_cooperative_tensor() const;
  template <class Left, class Right, class Element, class Coordinate = int>
  Cooperative<1, Element, Coordinate> get_column_reduction_destination_cooperative_tensor() const;
  template <class Left, class Right, class Element, class Source>
  bool is_compatible_as_left_input(const METALSIM_THREAD Source&) const;
  template <class Left, class Right, class Element, class Source>
  bool is_compatible_as_right_input(const METALSIM_THREAD Source&) const;
  template <class Left, class Right, class Destination>
  void run(METALSIM_THREAD Left&, METALSIM_THREAD Right&, METALSIM_THREAD Destination&) const;
};

#define METALSIM_REDUCE(name)                                 \
  template <class Source, class Target>                       \
  void name(METALSIM_THREAD Source&, METALSIM_THREAD Target&, \
            reduction_operation = reduction_operation::sum,   \
            typename Source::value_type =                     \
                reduction_operation_identity<typename Source::value_type>::sum_identity);
METALSIM_REDUCE(reduce_rows)
METALSIM_REDUCE(reduce_columns)
#undef METALSIM_REDUCE
template <class Source, class Target>
bool is_iterator_compatible(const METALSIM_THREAD Source&, const METALSIM_THREAD Target&);

}  // namespace mpp::tensor_ops
