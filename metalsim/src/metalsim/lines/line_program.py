"""The line number programs of `.debug_line` (DWARF 4, section 6.2)."""

from __future__ import annotations

from typing import NamedTuple

from .reader import Reader

VERSION = 4


class Row(NamedTuple):
    """From `address` on, up to the next row, code comes from this line; file 0 begins a gap."""

    address: int
    file: int
    line: int


class LineProgram(NamedTuple):
    """The files of one compilation unit, by DWARF's numbers, and its rows by address."""

    files: list[str]
    rows: list[Row]


class _Header(NamedTuple):
    end: int
    instruction_bytes: int
    line_base: int
    line_range: int
    operands: list[int]
    """Of each standard opcode, 1 first."""
    files: list[str]


def read_line_program(section: bytes, offset: int) -> LineProgram | None:
    """The program at `offset` of `.debug_line`; None if it is of another version of DWARF."""
    reader = Reader(section, offset)
    header = _read_header(reader)
    if header is None:
        return None
    state = _State(header)
    while reader.position < header.end:
        state.step(reader)
    return LineProgram(
        header.files, sorted(state.rows, key=lambda row: (row.address, row.file > 0))
    )


def _read_header(reader: Reader) -> _Header | None:
    length = reader.unsigned(4)
    end = reader.position + length
    if reader.unsigned(2) != VERSION:
        return None
    program = reader.unsigned(4) + reader.position
    instruction_bytes = reader.unsigned(1)
    reader.skip(2)  # operations an instruction, default of is_stmt
    line_base, line_range = reader.signed(1), reader.unsigned(1)
    operands = [reader.unsigned(1) for _ in range(reader.unsigned(1) - 1)]
    directories = [""]
    while name := reader.text():
        directories.append(name)
    files = [""]
    while name := reader.text():
        directory = directories[reader.uleb()]
        _time, _size = reader.uleb(), reader.uleb()
        files.append(f"{directory}/{name}" if directory else name)
    reader.position = program
    return _Header(end, instruction_bytes, line_base, line_range, operands, files)


class _State:
    """The registers of the machine that a line number program runs on, and what it put out."""

    def __init__(self, header: _Header) -> None:
        self.rows = list[Row]()
        self._header = header
        self._restart()

    def _restart(self) -> None:
        self._address, self._file, self._line = 0, 1, 1

    def _append(self) -> None:
        self.rows.append(Row(self._address, self._file, self._line))

    def step(self, reader: Reader) -> None:
        """Carry out one opcode."""
        opcode = reader.unsigned(1)
        if opcode > len(self._header.operands):
            advance, line = divmod(opcode - len(self._header.operands) - 1, self._header.line_range)
            self._address += advance * self._header.instruction_bytes
            self._line += self._header.line_base + line
            self._append()
        elif opcode == 0:
            self._extended(reader)
        else:
            self._standard(opcode, reader)

    def _standard(self, opcode: int, reader: Reader) -> None:
        if opcode == 1:  # copy
            self._append()
        elif opcode == 2:  # advance_pc
            self._address += reader.uleb() * self._header.instruction_bytes
        elif opcode == 3:  # advance_line
            self._line += reader.sleb()
        elif opcode == 4:  # set_file
            self._file = reader.uleb()
        elif opcode == 8:  # const_add_pc
            advance = (254 - len(self._header.operands)) // self._header.line_range
            self._address += advance * self._header.instruction_bytes
        elif opcode == 9:  # fixed_advance_pc
            self._address += reader.unsigned(2)
        else:
            for _ in range(self._header.operands[opcode - 1]):
                reader.uleb()

    def _extended(self, reader: Reader) -> None:
        length = reader.uleb()
        end = reader.position + length
        opcode = reader.unsigned(1)
        if opcode == 1:  # end_sequence
            self.rows.append(Row(self._address, 0, 0))
            self._restart()
        elif opcode == 2:  # set_address
            self._address = reader.unsigned(length - 1)
        reader.position = end
