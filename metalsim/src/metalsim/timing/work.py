"""What a launch does, and how it follows from the counters of a launch in the simulator."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LANES = 32
MATRIX_MULTIPLY_ADDS = 512
"""Of an 8x8x8 multiply."""
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


class Work(NamedTuple):
    """What a launch does in all, however it came to be known."""

    threadgroups: int
    simdgroups: int
    """A threadgroup."""
    matrix_multiply_adds: float = 0
    tensor_multiply_adds: float = 0
    issue_cycles: float = 0
    """Of a partition: instructions of simdgroups, each with its cost in cycles, matrices and
    exponentials left out."""
    float_cycles: float = 0
    """Those of `issue_cycles` that are floating-point arithmetic."""
    exponentials: float = 0
    """Of lanes."""
    l1_bytes: float = 0
    """Loaded and stored by lanes, in device and threadgroup memory."""
    l2_bytes: float = 0
    """That threadgroups fetch from beyond L1."""
    dram_bytes: float = 0
    """Each byte once."""
    threadgroup_bytes: int = 0
    """Threadgroup memory of one threadgroup."""
    registers: int = 0
    """32-bit registers a lane; 0: not known."""
    load_waits: float = 0
    """How often a simdgroup can do nothing before a load from L1 or threadgroup memory is there."""
    l2_waits: float = 0
    """The same for what comes from L2."""
    dram_waits: float = 0
    """The same for what comes from DRAM."""
    multiply_waits: float = 0
    """How often a simdgroup can do nothing before its last 8x8 multiply is done."""
    barriers: float = 0
    """Threadgroup barriers, of threadgroups."""
    spilled_executions: float = 0
    """How often a lane runs through the code that holds all its registers: those above what the
    family has are stored and loaded each time."""
    launches: int = 1


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
    reductions and functions alone, and is too low by the rest. It does not count waits for loads
    either. L2 bytes are whole lines, none of them found in L1. `dram_bytes` is what the caller
    knows to be read or written at least once, such as the size of all buffers; `registers` a lane,
    if known.
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
        barriers=counters["threadgroup_barriers"],
    )
