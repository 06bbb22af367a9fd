// <MetalPerformancePrimitives/MetalPerformancePrimitives.h>: matmul2d and its tensors.
#pragma once

#include "cooperative_tensor.h"

namespace mpp::tensor_ops {

// Not public, but many kernels name operands with it.
namespace __tensor_ops_detail {
template <class T>
using __remove_addrspace_t = metal::remove_addrspace_t<T>;
}  // namespace __tensor_ops_detail

template <class T>
__constant constexpr T dynamic_length_v = metal::numeric_limits<T>::max();

struct matmul2d_descriptor {
  enum class mode {
    multiply,
    multiply_accumulate,
  };
  int m, n, k;
  bool transpose_left, transpose_right, relaxed_precision;
  mode matmul_mode;

  constexpr matmul2d_descriptor(int m, int n, int k = int(metal::dynamic_extent),
                                bool transpose_left = false, bool transpose_right = false,
                                bool relaxed_precision = false, mode matmul_mode = mode::multiply)
      : m(m),
        n(n),
        k(k),
        transpose_left(transpose_left),
        transpose_right(transpose_right),
        relaxed_precision(relaxed_precision),
        matmul_mode(matmul_mode) {}
  // A descriptor is an argument of a template, which C++ has from its 20th edition on: here a
  // number stands for it.
  constexpr operator int() const { return m; }
  constexpr operator int() const __constant { return m; }
};

enum class reduction_operation {
  sum,
  max,
  min,
};
template <class T>
struct reduction_operation_identity {
  __constant static constexpr T sum_identity = T(0);
  __constant static constexpr T max_identity = metal::numeric_limits<T>::lowest();
  __constant static constexpr T min_identity = metal::numeric_limits<T>::max();
};

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
