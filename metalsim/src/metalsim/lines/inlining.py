"""Where inlined functions were called, from `.debug_info` (DWARF 4, sections 3.3.8 and 7.5)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from .line_program import VERSION
from .reader import Reader

_INLINED_SUBROUTINE = 0x1D
_COMPILE_UNIT = 0x11
_STMT_LIST, _LOW, _HIGH = 0x10, 0x11, 0x12
_RANGES, _CALL_FILE, _CALL_LINE = 0x55, 0x58, 0x59
_ADDRESS_FORM, _FLAG_PRESENT, _STRING = 0x01, 0x19, 0x08
_FIXED = {
    _ADDRESS_FORM: 8,
    _FLAG_PRESENT: 0,
    0x05: 2,
    0x06: 4,
    0x07: 8,
    0x0B: 1,
    0x0C: 1,
    0x0E: 4,
    0x10: 4,
    0x11: 1,
    0x12: 2,
    0x13: 4,
    0x14: 8,
    0x17: 4,
    0x20: 8,
}
"""Bytes of the forms of a fixed size."""
_BLOCKS = {0x03: 2, 0x04: 4, 0x0A: 1}
"""Bytes of the length in front of a block."""
_NUMBERED_BLOCKS = (0x09, 0x18)
_SIGNED, _UNSIGNED = (0x0D,), (0x0F, 0x15)


class Call(NamedTuple):
    """The code in [low, high) was inlined from a call at this line; `depth` grows inwards."""

    low: int
    high: int
    depth: int
    file: int
    line: int


class Unit(NamedTuple):
    """One compilation unit: its line number program's offset, and the calls inlined in it."""

    line_program: int
    calls: list[Call]


class _Abbreviation(NamedTuple):
    tag: int
    has_children: bool
    attributes: list[tuple[int, int]]


def read_units(sections: dict[str, bytes]) -> Iterator[Unit]:
    """The units of `.debug_info` that are of DWARF 4."""
    reader = Reader(sections.get(".debug_info", b""))
    while reader.position < len(reader.data):
        length = reader.unsigned(4)
        end = reader.position + length
        if reader.unsigned(2) == VERSION:
            abbreviations = _read_abbreviations(sections[".debug_abbrev"], reader.unsigned(4))
            reader.skip(1)  # bytes of an address
            yield _read_unit(reader, end, abbreviations, sections.get(".debug_ranges", b""))
        reader.position = end


def _read_abbreviations(section: bytes, offset: int) -> dict[int, _Abbreviation]:
    reader, found = Reader(section, offset), dict[int, _Abbreviation]()
    while code := reader.uleb():
        tag, has_children = reader.uleb(), bool(reader.unsigned(1))
        attributes = list[tuple[int, int]]()
        while (pair := (reader.uleb(), reader.uleb())) != (0, 0):
            attributes.append(pair)
        found[code] = _Abbreviation(tag, has_children, attributes)
    return found


def _read_unit(
    reader: Reader, end: int, abbreviations: dict[int, _Abbreviation], ranges: bytes
) -> Unit:
    line_program, base, depth, calls = 0, 0, 0, list[Call]()
    while reader.position < end:
        code = reader.uleb()
        if not code:
            depth -= 1
            continue
        abbreviation = abbreviations[code]
        values = {name: _read(reader, form) for name, form in abbreviation.attributes}
        if abbreviation.tag == _COMPILE_UNIT:
            line_program, base = values.get(_STMT_LIST, 0), values.get(_LOW, 0)
        elif abbreviation.tag == _INLINED_SUBROUTINE:
            relative = (_HIGH, _ADDRESS_FORM) not in abbreviation.attributes
            for low, high in _extent(values, relative, base, ranges):
                calls.append(
                    Call(low, high, depth, values.get(_CALL_FILE, 0), values.get(_CALL_LINE, 0))
                )
        depth += abbreviation.has_children
    return Unit(line_program, calls)


def _read(reader: Reader, form: int) -> int:
    """A value as a number; 0 for those that are none."""
    if form in _FIXED:
        return reader.unsigned(_FIXED[form])
    if form in _UNSIGNED:
        return reader.uleb()
    if form in _SIGNED:
        return reader.sleb()
    if form == _STRING:
        reader.text()
    elif form in _BLOCKS:
        reader.skip(reader.unsigned(_BLOCKS[form]))
    elif form in _NUMBERED_BLOCKS:
        reader.skip(reader.uleb())
    else:
        raise ValueError(f"debug information holds form {form:#x}, which DWARF 4 does not have")
    return 0


def _extent(
    values: dict[int, int], relative: bool, base: int, ranges: bytes
) -> Iterator[tuple[int, int]]:
    if _RANGES not in values:
        low, high = values.get(_LOW, 0), values.get(_HIGH, 0)
        yield low, low + high if relative else high
        return
    reader = Reader(ranges, values[_RANGES])
    while (pair := (reader.unsigned(8), reader.unsigned(8))) != (0, 0):
        if pair[0] == (1 << 64) - 1:
            base = pair[1]
        else:
            yield base + pair[0], base + pair[1]
