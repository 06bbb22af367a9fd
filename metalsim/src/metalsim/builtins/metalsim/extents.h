// The extents of a tensor: known to the compiler or given at run time, as those of std::mdspan.
// Dimension 0 is the innermost one: the column of a row-major matrix. Lint reads this header too.
#pragma once

#include <metalsim/type_traits.h>

namespace metal {

METALSIM_CONSTANT inline constexpr size_t dynamic_extent = ~static_cast<size_t>(0);

template <class IndexType, size_t... Extents>
struct extents {
  static_assert(is_integral_v<IndexType>, "extents: the index type must be an integer");
  static_assert(sizeof...(Extents) >= 1 && sizeof...(Extents) <= 16,
                "extents: a tensor has 1 to 16 dimensions");

  using index_type = IndexType;
  using rank_type = size_t;
  using size_type = make_unsigned_t<IndexType>;

  index_type values[sizeof...(Extents)];

  static METALSIM_INLINE constexpr rank_type rank() { return sizeof...(Extents); }
  static METALSIM_INLINE constexpr rank_type rank_dynamic() {
    return (0 + ... + (Extents == dynamic_extent));
  }
  static METALSIM_INLINE constexpr size_t static_extent(rank_type dimension) {
    constexpr size_t all[] = {Extents...};
    return all[dimension];
  }
  METALSIM_INLINE constexpr index_type extent(rank_type dimension) const {
    return values[dimension];
  }

  METALSIM_INLINE constexpr extents()
      : values{(Extents == dynamic_extent ? index_type(0) : static_cast<index_type>(Extents))...} {}
  // All extents, or the dynamic ones alone.
  template <class... Index, class = enable_if_t<(sizeof...(Index) > 0) &&
                                                (is_convertible_v<Index, IndexType> && ...)>>
  METALSIM_INLINE constexpr explicit extents(Index... given) : extents() {
    static_assert(sizeof...(Index) == rank() || sizeof...(Index) == rank_dynamic(),
                  "extents: give every extent, or every dynamic one");
    const index_type list[] = {static_cast<index_type>(given)...};
    rank_type next = 0;
    for (rank_type dimension = 0; dimension < rank(); ++dimension) {
      const bool is_dynamic = static_extent(dimension) == dynamic_extent;
      if (is_dynamic || sizeof...(Index) == rank()) {
        const index_type value = list[next++];
        if (is_dynamic) values[dimension] = value;
      }
    }
  }
};

}  // namespace metal

namespace metalsim {

template <class IndexType, size_t rank, size_t... dynamic>
struct DynamicExtents : DynamicExtents<IndexType, rank - 1, metal::dynamic_extent, dynamic...> {};
template <class IndexType, size_t... dynamic>
struct DynamicExtents<IndexType, 0, dynamic...> {
  using type = metal::extents<IndexType, dynamic...>;
};

}  // namespace metalsim

namespace metal {

template <class IndexType, size_t Rank>
using dextents = typename metalsim::DynamicExtents<IndexType, Rank>::type;

}  // namespace metal
