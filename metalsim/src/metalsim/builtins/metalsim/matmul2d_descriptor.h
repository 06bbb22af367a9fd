// What the host language sees of a matmul2d: its descriptor, and the operation of a reduction. Lint
// reads this header too.
#pragma once

#include <metalsim/extents.h>
#include <metalsim/numeric_limits.h>

namespace metalsim {

METALSIM_CONSTANT inline constexpr int dynamic_int = static_cast<int>(metal::dynamic_extent);

}  // namespace metalsim

namespace mpp::tensor_ops {

// Not public, but many kernels name operands with it.
namespace __tensor_ops_detail {
template <class T>
using __remove_addrspace_t = metal::remove_addrspace_t<T>;
}  // namespace __tensor_ops_detail

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

#ifdef METALSIM_HAS_ADDRESS_SPACES  // and C++17, where a number must stand for a template's
                                    // argument
  constexpr operator int() const { return m; }
  constexpr operator int() const METALSIM_CONSTANT { return m; }
#else
  METALSIM_INLINE constexpr bool operator==(const matmul2d_descriptor&) const = default;
#endif
  METALSIM_INLINE constexpr bool accumulates() const {
    return matmul_mode == mode::multiply_accumulate;
  }
};

template <class T>
METALSIM_CONSTANT inline constexpr T dynamic_length_v = metal::numeric_limits<T>::max();

template <class T>
struct reduction_operation_identity {
  METALSIM_CONSTANT static constexpr T sum_identity = T(0);
  METALSIM_CONSTANT static constexpr T max_identity = metal::numeric_limits<T>::lowest();
  METALSIM_CONSTANT static constexpr T min_identity = metal::numeric_limits<T>::max();
};

}  // namespace mpp::tensor_ops
