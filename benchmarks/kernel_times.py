"""What metalsim's time model says of the work of a kernel on a chip."""

from __future__ import annotations

from typing import Any, NamedTuple

from kernel_cases import Done, least

from flashmetal.bench.workloads import Workload
from metalsim.timing import Prediction, Work, chip, predict, work_of_counters

_LANES = 32
# Plain arithmetic is not counted. An exponential stands for a score, which takes five instructions
# of a softmax and its share of rescaling O (metalsim/benchmarks/time_model.py says the same of
# published kernels), and more with features and in blocks that need the mask.
_SOFTMAX = 5
_FEATURE = 3
_MASK = 4


class Times(NamedTuple):
    """One prediction, as it is kept."""

    milliseconds: float
    limit: str
    matrix_share: float
    """Of the time, what multiplying alone would take."""


def times_of(done: Done, workload: Workload, name: str) -> Times:
    """The predicted time of a kernel on a workload, on the chip of this name."""
    prediction = predicted(done, workload, name)
    matrix = prediction.limits["matrix"] / prediction.seconds
    return Times(prediction.seconds * 1e3, prediction.limit, matrix)


def predicted(done: Done, workload: Workload, name: str) -> Prediction:
    """The time model's answer, with arithmetic by formula.

    On Apple9 and later L1 is taken to hold a block of keys for the simdgroups of a threadgroup:
    L2 gives each block once. The 8 KB of Apple7 and 8 hold none.
    """
    shown = chip(name)
    work = _work(done, workload)
    if shown.family.number > 8:
        work = work._replace(l2_bytes=min(work.l2_bytes, _once_a_threadgroup(done, workload)))
    return predict(work, shown)


def _work(done: Done, workload: Workload) -> Work:
    counted = work_of_counters(
        done.counters,
        done.threads,
        done.group,
        threadgroup_bytes=done.threadgroup_bytes,
        dram_bytes=least(workload)["bytes"],
        registers=done.registers,
    )
    features = int(workload.softcap > 0.0) + int(workload.alibi)
    tile = done.kernel.tile
    rescaling = workload.head_dim_v / tile.streamed / tile.team
    arithmetic = done.counters["exponentials"] * (_SOFTMAX + _FEATURE * features + rescaling)
    arithmetic += done.masked_pairs * tile.team * _MASK
    if done.element_bytes == 4:  # exact float operands are multiplied at the rate of 8x8 matrices
        adds = counted.matrix_multiply_adds + counted.tensor_multiply_adds
        counted = counted._replace(matrix_multiply_adds=adds, tensor_multiply_adds=0)
    return counted._replace(
        issue_cycles=counted.issue_cycles + arithmetic / _LANES,
        spilled_executions=done.visits * _LANES,
        launches=done.launches,
    )


def _once_a_threadgroup(done: Done, workload: Workload) -> float:
    """Bytes, if each threadgroup fetches each of its blocks of keys and values once."""
    tile = done.kernel.tile
    teams = 1 if done.chip else tile.simdgroups // tile.team  # of a decode, blocks of their own
    row = (workload.head_dim + workload.head_dim_v) * done.element_bytes
    return done.visits / tile.team / teams * tile.streamed * row + least(workload)["bytes"]


def as_row(workload: Workload, done: Done, chips: tuple[str, ...]) -> dict[str, Any]:
    """A row of the results file."""
    counters, minimum = done.counters, least(workload)
    multiplies = counters["matrix_multiplies"] * 512 + counters["tensor_multiply_adds"]
    moved = counters["device_bytes_loaded"] + counters["device_bytes_stored"]
    shown = [name for name in chips if done.chip in (None, name)]
    return {
        "workload": workload.name,
        "kernel": done.kernel.name,
        "threads": list(done.threads),
        "group": list(done.group),
        "threadgroup_bytes": done.threadgroup_bytes,
        "registers_estimated": done.registers,
        "counters": {name: number for name, number in counters.items() if number},
        "multiplies_over_least": round(multiplies / minimum["multiply_adds"], 4),
        "device_bytes_over_least": round(moved / minimum["bytes"], 4),
        "simulated": [list(shape) for shape in done.simulated],
        "largest_error": float(f"{done.error:.3g}"),
        "predicted": {name: _rounded(times_of(done, workload, name)) for name in shown},
    }


def _rounded(times: Times) -> dict[str, Any]:
    return {
        "milliseconds": float(f"{times.milliseconds:.4g}"),
        "limit": times.limit,
        "matrix_share": round(times.matrix_share, 3),
    }
