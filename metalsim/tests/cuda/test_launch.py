"""What a launch on a GPU does beside the corpus: limits, fresh memory, lanes that left."""

from __future__ import annotations

import numpy as np
import pytest

import metalsim

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SOURCE = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

kernel void fresh(device int* found, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float shared[100];
  threadgroup int3 other[7];
  found[i] = isnan(shared[i]) + isnan(shared[i + 36]) + (other[i % 7][2] == -1);
}

kernel void some_leave(device float* x, device uint* y, uint i [[thread_position_in_grid]]) {
  if (i % 32 > 20) return;
  y[i] = uint(ulong(simd_vote::vote_t(simd_ballot(i % 3 == 0))));
  x[i] = simd_sum(x[i]) + simd_prefix_exclusive_sum(x[i]) + simd_broadcast_first(x[i]);
}

kernel void square(device float* x, constant uint& lanes, uint i [[thread_index_in_simdgroup]]) {
  if (i >= lanes) return;
  simdgroup_float8x8 a, b;
  simdgroup_load(a, x);
  simdgroup_multiply(b, a, a);
  simdgroup_store(b, x);
}

kernel void large(device float* x, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float shared[8193];
  shared[i] = 1;
  x[i] = shared[i];
}

kernel void counted(device atomic_uint* total, device atomic_float* sum) {
  threadgroup atomic_uint own;
  atomic_store_explicit(&own, 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&own, 1u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_max_explicit(total, atomic_load_explicit(&own, memory_order_relaxed),
                            memory_order_relaxed);
  atomic_fetch_add_explicit(sum, 0.5f, memory_order_relaxed);
}
"""


@pytest.fixture(params=["cuda", "cpu"])
def library(request: pytest.FixtureRequest) -> metalsim.ShaderLibrary:
    """Both engines: what holds here is no property of one of them."""
    return metalsim.compile_shader(SOURCE, engine=request.param)


def test_threadgroup_memory_is_nan_at_first(library: metalsim.ShaderLibrary) -> None:
    found = np.zeros(64, np.int32)
    library.fresh(found, threads=64, group_size=64)
    assert (found == 3).all()


def test_lanes_that_left_take_no_part() -> None:
    results = []
    for engine in ("cuda", "cpu"):
        x = np.random.default_rng(0).standard_normal(80).astype(np.float32)
        y = np.zeros(80, np.uint32)
        kernel = metalsim.compile_shader(SOURCE, engine=engine).some_leave
        kernel(x, y, threads=80, group_size=80)
        results.append((x.view(np.int32), y))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_matrices_need_all_lanes(library: metalsim.ShaderLibrary) -> None:
    x = np.eye(8, dtype=np.float32) * 3
    library.square(x, np.uint32(32), threads=32, group_size=32)
    assert (x == np.eye(8) * 9).all()
    with pytest.raises(metalsim.SimulationError, match="line 22"):
        library.square(x, np.uint32(32), threads=20, group_size=20)


def test_matrices_of_lanes_that_returned() -> None:
    library = metalsim.compile_shader(SOURCE, engine="cuda")
    with pytest.raises(metalsim.SimulationError, match=r"line 22 needs a full simdgroup"):
        library.square(np.eye(8, dtype=np.float32), np.uint32(31), threads=32, group_size=32)


def test_threadgroup_memory_has_apples_limit(library: metalsim.ShaderLibrary) -> None:
    with pytest.raises(metalsim.ThreadgroupMemoryError, match="32772|32784"):
        library.large(np.zeros(32, np.float32), threads=32, group_size=32)


def test_atomics_count_every_thread(library: metalsim.ShaderLibrary) -> None:
    total, sums = np.zeros(1, np.uint32), np.zeros(1, np.float32)
    library.counted(total, sums, threads=5000, group_size=1000)
    assert (total[0], sums[0]) == (1000, 2500)


def test_three_tf32_products_are_right_to_22_bits() -> None:
    x = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    exact, size = x.astype(float) @ x, np.abs(x).astype(float) @ np.abs(x)
    kernel = metalsim.compile_shader(SOURCE, engine="cuda", float_products="3xtf32").square
    kernel(x, np.uint32(32), threads=32, group_size=32)
    assert (np.abs(x - exact) <= 2.0**-20 * size).all()
