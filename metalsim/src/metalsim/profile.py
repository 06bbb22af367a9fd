"""What each line of a kernel added to the counters of a launch."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .lines import LineTable, Location

PROFILE = 16
"""The bit of `metalsim_launch.checks`."""
MAX_COUNTERS = 64
_INSTRUCTIONS = 4096


class LineCounters(NamedTuple):
    """The work of one line in one launch, by the names of `Kernel.counters`; zeros are left
    out."""

    location: Location | None
    """None for code that belongs to no line."""
    counters: Mapping[str, int]


class _InstructionCounters(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint64), ("counters", ctypes.c_uint64 * MAX_COUNTERS))


def instruction_counters(checks: int) -> ctypes.Array[_InstructionCounters]:
    """Room for what a launch counts by instruction: none if it does not profile."""
    return (_InstructionCounters * (_INSTRUCTIONS if checks & PROFILE else 0))()


def by_line(
    instructions: Iterable[_InstructionCounters], table: LineTable, names: Sequence[str]
) -> tuple[LineCounters, ...]:
    """The counters of the instructions of each line, added up, in the order of the source."""
    lines = dict[Location | None, Counter[str]]()
    for instruction in instructions:
        counters = lines.setdefault(table.locate(int(instruction.code)), Counter())
        for name, count in zip(names, instruction.counters, strict=False):
            if count:
                counters[name] += int(count)
    found = sorted(lines.items(), key=lambda item: item[0] or Location("", 0))
    return tuple(LineCounters(location, dict(counters)) for location, counters in found)
