"""benchmarks/kernels.py: its counts of long launches are those that the simulator comes to."""

from __future__ import annotations

import sys
from collections.abc import Generator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashmetal.engines.metal.tiles import Tile, tile_of
from flashmetal.testing import make_inputs
from flashmetal.tools.bench.workloads import Workload

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def scripts() -> Generator[SimpleNamespace]:
    """The modules of the benchmark, which import each other as scripts do."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        import kernel_cases
        import kernel_launches
        import kernel_steps
        import kernel_times
        import kernels

        yield SimpleNamespace(
            cases=kernel_cases,
            launches=kernel_launches,
            steps=kernel_steps,
            times=kernel_times,
            main=kernels,
        )
    for name in [name for name in sys.modules if (BENCHMARKS / f"{name}.py").exists()]:
        del sys.modules[name]


CAUSAL = {"seqlen_q": 650, "seqlen_k": 650, "window_right": 0}
CHUNK = {"seqlen_q": 300, "seqlen_k": 700, "window_left": 100, "window_right": 0}
CROSS = {"seqlen_q": 700, "seqlen_k": 205, "softcap": 20.0}
LONG_LAUNCHES = [
    pytest.param("simdgroup", CAUSAL, id="simdgroup, causal"),
    pytest.param("tensor", CHUNK, id="tensor, chunk in a window"),
    pytest.param("plain", CAUSAL, id="plain, causal"),
    pytest.param("simdgroup", CHUNK, id="simdgroup, chunk in a window", marks=pytest.mark.long),
    pytest.param("simdgroup", CROSS, id="simdgroup, cross, softcap", marks=pytest.mark.long),
    pytest.param("tensor", CAUSAL, id="tensor, causal", marks=pytest.mark.long),
    pytest.param("tensor", CROSS, id="tensor, cross, softcap", marks=pytest.mark.long),
    pytest.param("plain", CHUNK, id="plain, chunk in a window", marks=pytest.mark.long),
]


@pytest.mark.parametrize(("kernel", "options"), LONG_LAUNCHES)
def test_counters_of_a_long_launch_follow_from_short_ones(
    scripts: SimpleNamespace, kernel: str, options: dict[str, Any]
) -> None:
    workload = Workload("", heads_q=1, heads_k=1, **options)
    chosen = scripts.launches.plain_kernel(2, 64, 64)
    if kernel != "plain":
        chosen = scripts.launches.Kernel("", tile_of("forward", 9, 2, 64, 64, kernel))
    shape = scripts.steps.Shape(*(getattr(workload, name) for name in scripts.steps.Shape._fields))
    bench, facts = scripts.cases.Bench(), scripts.cases.Facts.of(workload)
    extended = bench.forward(workload, chosen)
    assert shape not in extended.simulated
    whole = bench.count(chosen, facts, shape)
    assert extended.counters == whole.counters


def test_steps_that_are_told_apart_too_coarsely_are_found(scripts: SimpleNamespace) -> None:
    shape, tile = scripts.steps.Shape(330, 330, -1, 0), Tile(32, 8, 4, True)
    made = scripts.steps.extension(shape, tile)
    counted = {
        short: {"squares": short.seqlen_q**2 + short.seqlen_k**2}
        for short in (*made.shapes, made.check)
    }
    with pytest.raises(ValueError, match="not linear"):
        made.counters(counted)


@pytest.mark.parametrize(
    ("head_dim", "dtype"),
    [
        pytest.param(80, torch.float16, id="80, half"),
        *(
            pytest.param(dim, dtype, id=f"{dim}, {name}", marks=pytest.mark.long)
            for dim in (40, 48, 64, 72, 96, 112, 160)
            for name, dtype in (("half", torch.float16), ("float", torch.float32))
        ),
    ],
)
def test_no_load_from_threadgroup_memory_meets_a_bank_twice(
    scripts: SimpleNamespace, head_dim: int, dtype: torch.dtype
) -> None:
    tile = tile_of("forward", 7, dtype.itemsize, head_dim, head_dim)
    problem, inputs = make_inputs(seqlen_q=32, heads_q=1, head_dim=head_dim, dtype=dtype)
    kernel, recorder = scripts.launches.Kernel("", tile), scripts.launches.Recorder()
    scripts.launches.launched(kernel, problem, inputs, recorder)
    loads = [line for line in recorder.lines if line.counters.get("threadgroup_loads")]
    assert loads
    assert not [line for line in loads if line.counters.get("bank_conflicts")]


@pytest.mark.parametrize("family", [7, 9])
@pytest.mark.parametrize(("dtype", "size"), [("float16", 2), ("float32", 4)])
def test_a_multiply_costs_no_more_at_head_dim_256_than_at_128(
    scripts: SimpleNamespace, family: int, dtype: str, size: int
) -> None:
    costs: list[list[float]] = []
    for head_dim in (128, 256):
        workload = Workload("", 1, 128, 64, 1, 1, head_dim, head_dim, dtype)
        kernel = scripts.launches.Kernel("", tile_of("forward", family, size, head_dim, head_dim))
        counters = scripts.cases.Bench().forward(workload, kernel).counters
        moved = counters["threadgroup_bytes_loaded"] + counters["threadgroup_bytes_stored"]
        multiplies = counters["matrix_multiplies"]
        costs.append([moved / multiplies, counters["threadgroup_barriers"] / multiplies])
    assert all(long <= short for short, long in zip(*costs, strict=True)), costs
