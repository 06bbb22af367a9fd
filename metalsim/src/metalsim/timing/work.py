"""The work of a launch in the simulator, from its counters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from .model import LANES, MATRIX_MULTIPLY_ADDS, Work

_LINE_BYTES = 128
_CYCLES = {
    "device_loads": 1,
    "device_stores": 1,
    "threadgroup_loads": 1,
    "threadgroup_stores": 1,
    "shuffles": 2,
    "votes": 2,
    "reductions": 14.5,
}
"""Of a partition, for one instruction of a simdgroup (metal-benchmarks)."""
_LANE_CYCLES = {"logarithms": 4, "square_roots": 8, "trigonometric": 8}
"""The same for functions, which are counted by lane."""


def work_of_counters(
    counters: Mapping[str, int],
    threads: Sequence[int],
    group: Sequence[int],
    *,
    threadgroup_bytes: int = 0,
    dram_bytes: int = 0,
    registers: int = 0,
) -> Work:
    """What a launch of `threads` in groups of `group` did, of a library compiled with
    `profile=True`.

    The simulator does not count plain arithmetic: the issue limit holds loads, stores, shuffles,
    reductions and functions alone, and is too low by the rest. L2 bytes are whole lines, none of
    them found in L1. `dram_bytes` is what the caller knows to be read or written at least once,
    such as the size of all buffers; `registers` a lane, if known.
    """
    sides = list(zip(threads, group, strict=True))
    functions = sum(counters[name] * cycles / LANES for name, cycles in _LANE_CYCLES.items())
    bytes_of = {
        space: counters[f"{space}_bytes_loaded"] + counters[f"{space}_bytes_stored"]
        for space in ("device", "threadgroup")
    }
    lines = counters["device_lines_loaded"] + counters["device_lines_stored"]
    return Work(
        threadgroups=math.prod(-(-size // side) for size, side in sides),
        simdgroups=-(-math.prod(side for _, side in sides) // LANES),
        matrix_multiply_adds=counters["matrix_multiplies"] * MATRIX_MULTIPLY_ADDS,
        tensor_multiply_adds=counters["tensor_multiply_adds"],
        issue_cycles=functions + sum(counters[name] * cost for name, cost in _CYCLES.items()),
        exponentials=counters["exponentials"],
        l1_bytes=sum(bytes_of.values()) + counters["bank_conflicts"] * _LINE_BYTES,
        l2_bytes=lines * _LINE_BYTES,
        dram_bytes=dram_bytes,
        threadgroup_bytes=threadgroup_bytes,
        registers=registers,
    )
