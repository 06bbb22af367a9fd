"""Who takes part in an operation: wrong launches and divergence, and what is counted."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import metalsim

Tensors = Callable[..., metalsim.ShaderLibrary]

SOURCE = """
kernel void one(device half* a, device half* b, device float* c, constant int& limit,
                uint i [[thread_index_in_threadgroup]]) {
  auto A = tensor(a, extents<int, 16, 64>());
  auto B = tensor(b, extents<int, 16, 16>());
  auto C = tensor(c, extents<int, 16, 64>());
  matmul2d<matmul2d_descriptor(64, 16, 16), execution_simdgroup> op;
  if (int(i) < limit)
    op.run(A, B, C);
}
kernel void four(device half* a, device half* b, device float* c, constant int& limit,
                 uint i [[simdgroup_index_in_threadgroup]]) {
  auto A = tensor(a, extents<int, 16, 64>());
  auto B = tensor(b, extents<int, 16, 16>());
  auto C = tensor(c, extents<int, 16, 64>());
  matmul2d<matmul2d_descriptor(64, 16, 16), execution_simdgroups<4>> op;
  op.run(A, B, C);
  if (int(i) < limit)
    op.run(A, B, C);
}
kernel void alone(device half* a, device half* b, device float* c, constant int& limit,
                   uint i [[thread_index_in_threadgroup]]) {
  auto A = tensor(a + 16 * i, extents<int, 16, 1>());
  auto B = tensor(b, extents<int, 16, 16>());
  auto C = tensor(c + 16 * i, extents<int, 16, 1>());
  matmul2d<matmul2d_descriptor(1, 16, 16), execution_thread> op;
  if (int(i) < limit) op.run(A, B, C);
}
kernel void few_rows(device half* a, device half* b, device float* c) {
  auto A = tensor(a, extents<int, 16, 64>());
  auto B = tensor(b, extents<int, 16, 16>());
  auto C = tensor(c, extents<int, 16, 64>());
  matmul2d<matmul2d_descriptor(8, 16, 16), execution_simdgroup> op;
  op.run(A, B, C);
}
kernel void promises(device half* a, device half* b, device float* c) {
  auto all_a = tensor(a, dextents<int, 2>(16, 64));
  auto A = all_a.slice<16, 64>(0, 32);
  auto B = tensor(b, extents<int, 16, 16>());
  auto C = tensor(c, extents<int, 16, 64>());
  matmul2d<matmul2d_descriptor(64, 16, 16), execution_simdgroup> op;
  op.run(A, B, C);
}
kernel void rows(device float* a, device float* out) {
  using Memory = tensor<device float, extents<int, 32, 16>, tensor_inline>;
  Memory A(a, extents<int, 32, 16>());
  matmul2d<matmul2d_descriptor(16, 32), execution_simdgroup> op;
  auto s = op.get_destination_cooperative_tensor<Memory, Memory, float>();
  s.load(A);
  auto sums = op.get_row_reduction_destination_cooperative_tensor<Memory, Memory, float>();
  reduce_rows(s, sums);
  sums.store(tensor(out, extents<int, 16>()));
}
"""


def launch(
    tensor_library: Tensors,
    kernel: str,
    threads: int,
    limit: int,
    check: bool = True,
    layout: str | None = None,
) -> tuple[np.ndarray, dict[str, int]]:
    """C after a launch of one threadgroup, NaN where nothing was stored; and the counters."""
    library = tensor_library(SOURCE, check=check, cooperative_layout=layout)
    # What follows `a` in memory belongs to no buffer.
    a, b = np.ones((256, 16), np.float16)[:64], np.ones((16, 16), np.float16)
    c = np.full((64, 16), np.nan, np.float32)
    function = getattr(library, kernel)
    function(a, b, c, np.int32(limit), threads=threads, group_size=threads)
    return c, function.counters


@pytest.mark.parametrize("layout", ["apple10", "older", "random:1"])
def test_counters_are_exact(tensor_library: Tensors, layout: str) -> None:
    work = 64 * 16 * 16
    for kernel, threads, limit, share in (
        ("one", 32, 32, 1),
        ("four", 128, 0, 1),
        ("four", 128, 4, 2),
        ("alone", 64, 64, 1),
        ("alone", 64, 10, 10 / 64),
    ):
        c, counters = launch(tensor_library, kernel, threads, limit, layout=layout)
        assert counters["tensor_multiply_adds"] == work * share, (kernel, limit)
        assert counters["matrix_multiplies"] == counters["reductions"] == 0
        rows = limit if kernel == "alone" else 64
        assert (c[:rows] == 16).all()
        assert np.isnan(c[rows:]).all()


def test_bytes_are_counted_once_a_simdgroup(tensor_library: Tensors) -> None:
    _, counters = launch(tensor_library, "one", 32, 32)
    assert counters["device_bytes_loaded"] == 2 * (64 * 16 + 16 * 16)
    assert counters["device_bytes_stored"] == 4 * 64 * 16
    _, counters = launch(tensor_library, "four", 128, 0)
    assert counters["device_bytes_loaded"] == 2 * (64 * 16 + 4 * 16 * 16)
    assert counters["device_bytes_stored"] == 4 * 64 * 16
    c, counters = launch(tensor_library, "few_rows", 32, 0)
    assert counters["device_bytes_loaded"] == 2 * (8 * 16 + 16 * 16)
    assert (c[:8] == 16).all()
    assert np.isnan(c[8:]).all()


def test_a_reduction_counts_as_one(tensor_library: Tensors) -> None:
    library = tensor_library(SOURCE, check=True)
    a, out = np.ones((16, 32), np.float32), np.zeros(16, np.float32)
    library.rows(a, out, threads=32, group_size=32)
    assert (out == 32).all()
    assert library.rows.counters["reductions"] == 1
    assert library.rows.counters["tensor_multiply_adds"] == 0
    assert library.rows.counters["device_bytes_stored"] == 4 * 16


@pytest.mark.parametrize("check", [False, True])
def test_lanes_that_do_not_come_diverge(tensor_library: Tensors, check: bool) -> None:
    with pytest.raises(metalsim.DivergenceError, match=r"20 threads .* in matmul2d at line 9"):
        launch(tensor_library, "one", 32, 20, check)


@pytest.mark.parametrize("threads", [32, 96, 160])
def test_a_wrong_number_of_simdgroups_is_an_error(tensor_library: Tensors, threads: int) -> None:
    with pytest.raises(metalsim.SimulationError, match=r"launch 128 threads a threadgroup"):
        launch(tensor_library, "four", threads, 0)


def test_a_part_of_a_simdgroup_is_an_error(tensor_library: Tensors) -> None:
    with pytest.raises(metalsim.SimulationError, match="needs a full simdgroup of 32 threads"):
        launch(tensor_library, "one", 24, 24)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_simdgroups_that_do_not_come_diverge(tensor_library: Tensors, seed: int) -> None:
    message = r"simdgroup 3 .* ran 1 matmul2d of execution_simdgroups, simdgroup 0 ran 2"
    with (
        metalsim.schedule(seed=seed),
        pytest.raises(metalsim.DivergenceError, match=message),
    ):
        launch(tensor_library, "four", 128, 3)


def test_a_slice_that_promises_too_much_is_out_of_bounds(tensor_library: Tensors) -> None:
    with pytest.raises(metalsim.SimulationError, match=r"out of bounds.* buffer.0"):
        launch(tensor_library, "promises", 32, 0)
