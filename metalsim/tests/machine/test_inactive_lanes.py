"""`compile_shader(..., inactive_lanes=True)`: collectives of the lanes that reach them together."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import metalsim

SOURCE = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;
#define KERNEL(name) \\
  kernel void name(device int* out, uint i [[thread_position_in_threadgroup]])

// Stands in front of the kernels that call it, and is called behind their branches.
__attribute__((noinline)) static int total(int value) { return simd_sum(value); }
static int inlined_total(int value) { return simd_sum(value); }

KERNEL(one_side) {
  int sum = -1;
  if (i % 32 < 5) sum = simd_sum(int(i));
  out[i] = sum + simd_sum(1);
}
KERNEL(both_sides) {
  if (i & 1)
    out[i] = simd_sum(int(i));
  else
    out[i] = simd_max(int(i));
}
KERNEL(one_side_then_a_function) {
  int sum = 0;
  if (i % 32 < 5) sum = simd_max(int(i));
  out[i] = total(1) + sum;
}
KERNEL(function_on_one_side) {
  int sum = 0;
  if (i % 32 >= 5) sum = total(1);
  out[i] = sum + simd_sum(1);
}
KERNEL(loops_of_unequal_length) {
  int sum = 0;
  for (uint turn = 0; turn <= i % 4; ++turn) sum += simd_sum(1);
  out[i] = sum + 1000 * simd_sum(1);
}
KERNEL(some_return) {
  if (i % 32 > 20) {
    out[i] = simd_sum(2);
    return;
  }
  out[i] = simd_sum(1);
}
KERNEL(wide_and_narrow) {
  if (i & 1)
    out[i] = simd_shuffle_xor(long(i) << 32, 2) >> 32;
  else
    out[i] = simd_shuffle_xor(uchar(i), 2);
}
KERNEL(mask) { out[i] = i % 3 ? ulong(simd_active_threads_mask()) : ulong(simd_ballot(i & 1)); }
KERNEL(nested) {
  int value = 0;
  if (i & 1) {
    if (i & 2) value = simd_sum(1);
    value += 100 * simd_sum(1);
  }
  out[i] = value + 10000 * simd_sum(1);
}
KERNEL(with_a_barrier) {
  threadgroup int shared[64];
  shared[i] = i % 32 < 7 ? simd_sum(1) : 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[63 - i];
}
KERNEL(two_calls_of_one_line) {
  int sum = 0; if (i % 32 < 16) sum = simd_sum(1); sum += simd_sum(2);
  out[i] = sum;
}
KERNEL(helper_twice) {
  int sum = 0;
  if (i % 32 < 16) sum = inlined_total(1);
  out[i] = sum + inlined_total(2);
}
KERNEL(helper_on_both_sides) {
  if (i % 32 < 16)
    out[i] = inlined_total(1);
  else
    out[i] = inlined_total(2);
}
KERNEL(barrier_on_one_side) {
  if (i & 1) simdgroup_barrier(mem_flags::mem_none);
  out[i] = simd_sum(1);
}
KERNEL(matrix_on_one_side) {
  simdgroup_float8x8 a(1.0f);
  if (i & 1) simdgroup_multiply(a, a, a);
  out[i] = simd_sum(1);
}
"""


def simdgroups(values: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`values(threads)` for each of the two simdgroups."""
    return np.concatenate([values(np.arange(32)), values(np.arange(32, 64))])


def masked(lanes: np.ndarray) -> int:
    return int(np.sum(1 << (lanes % 32)).astype(np.int64).astype(np.int32))


def odd_sum_even_max(i: np.ndarray) -> np.ndarray:
    return np.where(i & 1, i[i & 1 == 1].sum(), i[i & 1 == 0].max())


EXPECTED = {
    "one_side": lambda i: np.where(i % 32 < 5, i[:5].sum(), -1) + 32,
    "both_sides": odd_sum_even_max,
    "one_side_then_a_function": lambda i: np.where(i % 32 < 5, i[4], 0) + 32,
    "function_on_one_side": lambda i: np.where(i % 32 >= 5, 27, 0) + 32,
    "loops_of_unequal_length": lambda i: np.array([32, 56, 72, 80])[i % 4] + 32000,
    "some_return": lambda i: np.where(i % 32 > 20, 22, 21),
    "wide_and_narrow": lambda i: i ^ 2,
    "mask": lambda i: np.where(i % 3, masked(i[i % 3 > 0]), masked(i[(i % 3 == 0) & (i % 2 == 1)])),
    "nested": lambda i: np.where(i & 1, np.where(i & 2, 8, 0) + 1600, 0) + 320000,
    "with_a_barrier": lambda i: np.where(i % 32 > 24, 7, 0),
    "two_calls_of_one_line": lambda i: np.where(i % 32 < 16, 16, 0) + 64,
}
CALLS_OF_HELPERS = {  # g++ does not keep them apart
    "helper_twice": lambda i: np.where(i % 32 < 16, 16, 0) + 64,
    "helper_on_both_sides": lambda i: np.where(i % 32 < 16, 16, 32),
}


def check_under_seeds(name: str, check: bool, expected: Callable[[np.ndarray], np.ndarray]) -> None:
    library = metalsim.compile_shader(SOURCE, check=check, inactive_lanes=True)
    for seed in (0, 1, 2):
        out = np.zeros(64, np.int32)
        with metalsim.schedule(seed=seed):
            getattr(library, name)(out, threads=64, group_size=64)
        np.testing.assert_array_equal(out, simdgroups(expected), f"seed {seed}")


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", EXPECTED)
def test_lanes_that_meet(name: str, check: bool, compiler: str) -> None:
    check_under_seeds(name, check, EXPECTED[name])


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", CALLS_OF_HELPERS)
def test_calls_of_a_helper_are_apart(name: str, check: bool, clang: str) -> None:
    check_under_seeds(name, check, CALLS_OF_HELPERS[name])


@pytest.mark.parametrize("name", ["barrier_on_one_side", "matrix_on_one_side"])
def test_what_needs_all_lanes_still_does(name: str, compiler: str) -> None:
    library = metalsim.compile_shader(SOURCE, inactive_lanes=True)
    with pytest.raises(metalsim.DivergenceError):
        getattr(library, name)(np.zeros(64, np.int32), threads=64, group_size=64)


def test_without_the_option_divergence_is_an_error() -> None:
    library = metalsim.compile_shader(SOURCE)
    with pytest.raises(metalsim.DivergenceError):
        library.one_side(np.zeros(64, np.int32), threads=64, group_size=64)
