// <metal_simdgroup_matrix>: 8x8 matrices spread over a simdgroup, two elements a lane in Apple's
// layout. Products accumulate in float and are rounded once to the element type of the result.
#pragma once

#include "simdgroup.h"
#include "simdgroup_matrix_type.h"

namespace metal {

template <class T, int Columns, int Rows>
METALSIM_INLINE simdgroup_matrix<T, Columns, Rows>::simdgroup_matrix(T value) {
  const uint lane = metalsim::backend::lane();
  const uint row = metalsim::matrix_row(lane), column = metalsim::matrix_column(lane);
  elements[0] = row == column ? value : T(0);
  elements[1] = row == column + 1 ? value : T(0);
}

// `stride` is the distance of rows in elements, `origin` is (column, row).
template <class T, class Source>
METALSIM_INLINE void simdgroup_load(simdgroup_matrix<T, 8, 8>& matrix, const Source* source,
                                    ulong stride = 8, ulong2 origin = ulong2(0),
                                    bool transpose = false) {
  static_assert(is_same_v<T, remove_cv_t<Source>>, "the matrix and the memory differ in type");
  const uint lane = metalsim::backend::lane();
  const uint row = metalsim::matrix_row(lane), column = metalsim::matrix_column(lane);
  source += origin[1] * stride + origin[0];
  const ulong first = transpose ? column * stride + row : row * stride + column;
  matrix.thread_elements()[0] = source[first];
  matrix.thread_elements()[1] = source[first + (transpose ? stride : 1)];
}

template <class T, class Target>
METALSIM_INLINE void simdgroup_store(const simdgroup_matrix<T, 8, 8>& matrix, Target* target,
                                     ulong stride = 8, ulong2 origin = ulong2(0),
                                     bool transpose = false) {
  static_assert(is_same_v<T, Target>, "the matrix and the memory differ in type");
  const uint lane = metalsim::backend::lane();
  const uint row = metalsim::matrix_row(lane), column = metalsim::matrix_column(lane);
  target += origin[1] * stride + origin[0];
  const ulong first = transpose ? column * stride + row : row * stride + column;
  target[first] = matrix.thread_elements()[0];
  target[first + (transpose ? stride : 1)] = matrix.thread_elements()[1];
}

}  // namespace metal

namespace metalsim {

template <class D, class A, class B, class C>
METALSIM_INLINE void multiply_accumulate(metal::vec<D, 2>& d, const metal::vec<A, 2>& a,
                                         const metal::vec<B, 2>& b, const metal::vec<C, 2>& c,
                                         const char* name, uint32_t site) {
  constexpr uint32_t types =
      pack(Collective::matrix_multiply, static_cast<uint32_t>(scalar_type<A>()),
           static_cast<uint32_t>(scalar_type<B>()), static_cast<uint32_t>(scalar_type<C>()),
           static_cast<uint32_t>(scalar_type<D>()));
  backend::multiply_accumulate(d.elements, a.elements, b.elements, c.elements, types, name, site);
}

}  // namespace metalsim

namespace metal {

template <class D, class A, class B, class C>
METALSIM_INLINE void simdgroup_multiply_accumulate(simdgroup_matrix<D, 8, 8>& d,
                                                   const simdgroup_matrix<A, 8, 8>& a,
                                                   const simdgroup_matrix<B, 8, 8>& b,
                                                   const simdgroup_matrix<C, 8, 8>& c,
                                                   uint site = METALSIM_SITE) {
  metalsim::multiply_accumulate(d.thread_elements(), a.thread_elements(), b.thread_elements(),
                                c.thread_elements(), "simdgroup_multiply_accumulate", site);
}

template <class D, class A, class B>
METALSIM_INLINE void simdgroup_multiply(simdgroup_matrix<D, 8, 8>& d,
                                        const simdgroup_matrix<A, 8, 8>& a,
                                        const simdgroup_matrix<B, 8, 8>& b,
                                        uint site = METALSIM_SITE) {
  const vec<D, 2> zeros(D(0));
  metalsim::multiply_accumulate(d.thread_elements(), a.thread_elements(), b.thread_elements(),
                                zeros, "simdgroup_multiply", site);
}

}  // namespace metal
