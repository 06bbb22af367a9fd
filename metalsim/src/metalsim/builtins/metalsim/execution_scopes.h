// Which threads carry out a tensor operation together. Lint reads this header too.
#pragma once

#include <metalsim/type_traits.h>

namespace metal {

template <size_t Size>
struct execution_threads {
  static_assert(Size == 1,
                "execution_threads: a tensor operation runs on 1 thread or on simdgroups");
  METALSIM_CONSTANT static constexpr size_t static_size = Size;
  METALSIM_INLINE constexpr uint size() const { return Size; }
};

template <size_t Size>
struct execution_simdgroups {
  static_assert(Size >= 1 && Size <= 32, "execution_simdgroups: a threadgroup has 1 to 32");
  METALSIM_CONSTANT static constexpr size_t static_size = Size;
  METALSIM_INLINE constexpr uint size() const { return Size; }
};

using execution_thread = execution_threads<1>;
using execution_simdgroup = execution_simdgroups<1>;

template <class T>
METALSIM_CONSTANT inline constexpr bool is_execution_thread_v =
    is_same_v<remove_cv_t<T>, execution_thread>;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_execution_simdgroup_v =
    is_same_v<remove_cv_t<T>, execution_simdgroup>;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_execution_simdgroups_v = false;
template <size_t Size>
METALSIM_CONSTANT inline constexpr bool is_execution_simdgroups_v<execution_simdgroups<Size>> =
    true;

}  // namespace metal
