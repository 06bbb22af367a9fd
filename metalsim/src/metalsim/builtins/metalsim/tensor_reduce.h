// reduce_rows and reduce_columns of a cooperative tensor.
#pragma once

#include "tensor_rules.h"

namespace metalsim {

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
                            const char* name, uint site) {
  check_reduction<Source, Target>(0);
  using From = typename Source::layout;
  using To = typename Target::layout;
  static_assert(To::kept_dimension == kept,
                "reduce_rows takes a row reduction, reduce_columns a column reduction");
  constexpr int elements = From::rows * From::columns;
  static_assert(elements * sizeof(T) <= workspace_bytes, "too large a matrix to reduce");
  T* matrix = reinterpret_cast<T*>(backend::tensor_workspace(site));
  for (int slot = 0; slot < From::capacity; ++slot) {
    const Place place = From::place(slot);
    if (place.valid) matrix[place.index[1] * From::columns + place.index[0]] = source[slot];
  }
  backend::exchange_tensors(name, site);
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
