"""What MLX's kernels use that the specification does not name."""

from __future__ import annotations

import numpy as np

import metalsim

SOURCE = """#include <metal_stdlib>
#include <metal_logging>
using namespace metal;

namespace metal {
template <typename T> struct is_empty : bool_constant<__is_empty(T)> {};
template <typename... T> using void_t = void;
inline bfloat exp2(bfloat x) {
  return static_cast<bfloat>(__metal_exp2(static_cast<float>(x), __METAL_MAYBE_FAST_MATH__));
}
namespace fast { inline bfloat exp2(bfloat x) { return metal::exp2(x); } }
namespace precise { inline bfloat abs(bfloat x) { return bfloat(metal::abs(float(x))); } }
}  // namespace metal
constant metal::os_log logger("metalsim", "tests");
constant bool forward [[function_constant(0)]];

template <typename T>
inline void advance(const device T*& x, int step [[buffer(0)]]) { x += step; }

kernel void internals(device float* out, constant const int steps[2], const device float* in,
                      uint i [[thread_position_in_grid]]) {
  bfloat sum = 0;
  sum += exp2(bfloat(float(i)));
  const uniform<float> one = make_uniform(1.0f);
  advance(in, steps[0] + steps[1]);
  logger.log_debug("thread %d", i);
  sum += fast::exp2(bfloat(0.0f)) - bfloat(fast::exp2(0.0f) + precise::abs(-0.0f));
  sum = precise::abs(sum);
  out[i] = sum + one + in[0] + __metal_simd_max(float(i)) +
           __metal_simd_shuffle_xor(ushort(i), 1) * (forward ? 100 : 0) +
           __metal_simd_shuffle_and_fill_down(float(i), -1.0f, ushort(1), ushort(4)) +
           __metal_fma(2.0f, 3.0f, float(i)) + __metal_get_simdgroup_size(ushort());
}
"""


def test_internal_functions() -> None:
    library = metalsim.compile_shader(SOURCE, function_constants={"forward": True})
    out = np.zeros(4, np.float32)
    steps = np.array([1, 2], np.int32)
    library.internals(out, steps, np.array([0, 0, 0, 1000], np.float32), threads=4, group_size=4)
    lanes = np.arange(4)
    filled = np.array([1, 2, 3, -1])
    expected = 2.0**lanes + 1 + 1000 + 3 + (lanes ^ 1) * 100 + filled + 6 + lanes + 32
    assert list(out) == list(expected)


def test_lint_knows_them() -> None:
    assert metalsim.lint(SOURCE, metal_version="3.2") == []
