// The type of <metal_simdgroup_matrix>: two elements a lane. Lint reads this header too.
#pragma once

#include <metalsim/vectors.h>

namespace metal {

template <class T, int Columns, int Rows>
struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8, "Metal has 8x8 matrices only");
  static_assert(is_floating_point_v<T>, "invalid element type: half, bfloat or float");

  simdgroup_matrix() = default;
  // A multiple of the identity.
  METALSIM_INLINE explicit simdgroup_matrix(T value) METALSIM_THREAD;

  METALSIM_INLINE METALSIM_THREAD vec<T, 2>& thread_elements() METALSIM_THREAD { return elements; }
  METALSIM_INLINE const METALSIM_THREAD vec<T, 2>& thread_elements() const METALSIM_THREAD {
    return elements;
  }

 private:
  vec<T, 2> elements;
};

using simdgroup_float8x8 = simdgroup_matrix<float, 8, 8>;
using simdgroup_half8x8 = simdgroup_matrix<half, 8, 8>;
using simdgroup_bfloat8x8 = simdgroup_matrix<bfloat, 8, 8>;

template <class T, int Columns = 8, int Rows = 8>
METALSIM_INLINE simdgroup_matrix<T, Columns, Rows> make_filled_simdgroup_matrix(T value) {
  simdgroup_matrix<T, Columns, Rows> matrix;
  matrix.thread_elements() = vec<T, 2>(value);
  return matrix;
}
template <class T, int Columns = 8, int Rows = 8>
METALSIM_INLINE simdgroup_matrix<T, Columns, Rows> make_diagonal_simdgroup_matrix(T value) {
  return simdgroup_matrix<T, Columns, Rows>(value);
}

}  // namespace metal
