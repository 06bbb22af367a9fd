"""What metalsim's time model says of the work of a kernel on a chip."""

from __future__ import annotations

from typing import Any, NamedTuple

from kernel_cases import Done, least

from flashmetal.tools.bench.workloads import Workload
from metalsim.timing import Chip, Prediction, Work, chip, predict, work_of_counters

_LANES = 32
# The simulator counts neither plain arithmetic nor waits for loads. Both are described as
# metalsim/benchmarks/published_work.py describes the kernels of others: five instructions of a
# softmax an exponential and its share of rescaling O, more with features and where a mask is asked.
_SOFTMAX = 5
_FEATURE = 3
_MASK = 4
_MOST_ACCUMULATORS = 8  # 8x8 floats that leave Apple7 registers to load ahead
_TENSOR_STEP = 16 * 32  # elements of K or V in a step of matmul2d; four of K are loaded at once


class Times(NamedTuple):
    """One prediction, as it is kept."""

    milliseconds: float
    limit: str
    matrix_share: float
    """Of the time, what multiplying alone would take."""


def times_of(done: Done, workload: Workload, name: str) -> Times:
    """The predicted time of a kernel on a workload, on the chip of this name."""
    prediction = predict(work_of(done, workload, chip(name)), chip(name))
    matrix = prediction.limits["matrix"] / prediction.seconds
    return Times(prediction.seconds * 1e3, prediction.limit, matrix)


def predicted(done: Done, workload: Workload, name: str) -> Prediction:
    """The time model's whole answer."""
    return predict(work_of(done, workload, chip(name)), chip(name))


def work_of(done: Done, workload: Workload, on: Chip) -> Work:
    """What was counted, and by formula arithmetic and waits.

    On Apple9 and later L1 is taken to hold a block of keys for the simdgroups of a threadgroup:
    L2 gives each block once. The 8 KB of Apple7 and 8 hold none.
    """
    counted = work_of_counters(
        done.counters,
        done.threads,
        done.group,
        threadgroup_bytes=done.threadgroup_bytes,
        dram_bytes=least(workload)["bytes"],
        registers=done.registers,
    )
    if done.element_bytes == 4:  # exact float operands are multiplied at the rate of 8x8 matrices
        adds = counted.matrix_multiply_adds + counted.tensor_multiply_adds
        counted = counted._replace(matrix_multiply_adds=adds, tensor_multiply_adds=0)
    if on.family.number > 8:
        once = _once_a_threadgroup(done, workload)
        counted = counted._replace(l2_bytes=min(counted.l2_bytes, once))
    features = int(workload.softcap > 0.0) + int(workload.alibi)
    tile = done.kernel.tile
    rescaling = workload.head_dim_v / tile.streamed / tile.team
    floats = done.counters["exponentials"] * (_SOFTMAX + _FEATURE * features + rescaling)
    masks = done.masked_pairs * tile.team * _MASK
    return _waiting(counted, done, workload, on)._replace(
        issue_cycles=counted.issue_cycles + (floats + masks) / _LANES,
        float_cycles=floats / _LANES,
        spilled_executions=done.visits * _LANES,
        launches=done.launches,
    )


def _waiting(work: Work, done: Done, workload: Workload, on: Chip) -> Work:
    """With the waits of visits: for each strip of K, and for each strip of V where accumulators
    leave no registers to load ahead, else once; for staging once. The plain kernel loads fragments
    one by one, stages K and V apart, and waits for S and for P to come back.

    A decode waits for DRAM, once for K and once for V; tensor operations for steps of matmul2d.
    """
    tile, visits = done.kernel.tile, done.visits
    if done.chip is not None:
        return work._replace(dram_waits=2 * visits)
    if tile.unit == "tensor":
        steps = [x * tile.streamed / tile.team / _TENSOR_STEP for x in _dims(workload)]
        return work._replace(l2_waits=visits * (steps[0] / 4 + steps[1]))
    across = [-(-dim // (8 * tile.team)) for dim in _dims(workload)]
    widest = [1, 1] if done.kernel.is_plain else [16 // done.element_bytes, 8 // done.element_bytes]
    strips = [n // min(n & -n, most) for n, most in zip(across, widest, strict=True)]
    starved = on.family.number <= 8 and tile.rows // 8 * across[1] > _MOST_ACCUMULATORS
    waits = strips[0] + (strips[1] * tile.streamed / 8 if starved else 1)
    if done.kernel.is_plain:
        return work._replace(load_waits=visits * (waits + 2), l2_waits=visits * 2)
    return work._replace(load_waits=visits * waits, l2_waits=visits)


def _dims(workload: Workload) -> tuple[int, int]:
    return workload.head_dim, workload.head_dim_v


def _once_a_threadgroup(done: Done, workload: Workload) -> float:
    """Bytes, if each threadgroup fetches each of its blocks of keys and values once."""
    tile = done.kernel.tile
    teams = 1 if done.chip else tile.simdgroups // tile.team  # of a decode, blocks of their own
    row = sum(_dims(workload)) * done.element_bytes
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
