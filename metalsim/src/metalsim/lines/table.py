"""The table itself: calls of inlined functions are followed out of metalsim's own headers."""

from __future__ import annotations

import functools
import posixpath
from bisect import bisect_right
from pathlib import Path
from typing import NamedTuple

from ..machine import DEBUG_PREFIX
from .inlining import Call, read_units
from .line_program import LineProgram, read_line_program
from .reader import elf_sections


class Location(NamedTuple):
    """A line of the user's source: `file` as the compiler's errors name it (`program_source`, or
    the path of an included file), `line` from 1."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


class _Unit(NamedTuple):
    program: LineProgram
    starts: list[int]
    """Addresses from which on the calls of the same index are those around the code."""
    chains: list[tuple[Call, ...]]
    """Innermost first."""


class LineTable:
    """The lines of one kernel library of a checking build.

    Reads DWARF 4 out of ELF files; for another kind of library every location is None.
    """

    def __init__(self, units: list[_Unit]) -> None:
        self._units = units
        self._located: dict[int, Location | None] = {}

    @classmethod
    @functools.lru_cache(maxsize=64)
    def read(cls, library: Path) -> LineTable:
        """The table of the shared library at `library`, which keeps its content (its name is a
        hash of it)."""
        sections, units = elf_sections(library), list[_Unit]()
        for unit in read_units(sections):
            program = read_line_program(sections[".debug_line"], unit.line_program)
            if program is not None:
                units.append(_Unit(program, *_flatten(unit.calls)))
        return cls(units)

    def locate(self, offset: int) -> Location | None:
        """The user's line of the call that returns to `offset`, an address in the library less
        the one where the library was loaded; None where the code is nobody's."""
        if offset not in self._located:
            found = (_locate(unit, offset - 1) for unit in self._units)
            self._located[offset] = next((location for location in found if location), None)
        return self._located[offset]


def _flatten(calls: list[Call]) -> tuple[list[int], list[tuple[Call, ...]]]:
    """The calls around each piece of code, for a binary search."""
    edges = [(call.low, True, call) for call in calls if call.low < call.high]
    edges += [(call.high, False, call) for call in calls if call.low < call.high]
    starts, chains, open_calls = [0], [()], set[Call]()
    for address, opens, call in sorted(edges):
        if opens:
            open_calls.add(call)
        else:
            open_calls.discard(call)
        if starts[-1] != address:
            starts.append(address)
            chains.append(())
        chains[-1] = tuple(sorted(open_calls, key=lambda call: -call.depth))
    return starts, chains


def _locate(unit: _Unit, address: int) -> Location | None:
    at = bisect_right(unit.program.rows, address, key=lambda row: row.address) - 1
    if at < 0 or not unit.program.rows[at].file:
        return None
    # Code that the compiler made out of several lines has line 0: it counts with what is before.
    while at > 0 and not unit.program.rows[at].line and unit.program.rows[at].file:
        at -= 1
    row = unit.program.rows[at]
    lines = [(row.file, row.line)]
    chain = unit.chains[bisect_right(unit.starts, address) - 1]
    lines += [(call.file, call.line) for call in chain]
    for file, line in lines:
        name = unit.program.files[file]
        if line and not name.startswith(DEBUG_PREFIX):
            return Location(posixpath.normpath(name), line)
    return None
