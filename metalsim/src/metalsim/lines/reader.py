"""Bytes of debug information, read one value after another, and the sections that hold them."""

from __future__ import annotations

import struct
from pathlib import Path

_ELF64_LITTLE_ENDIAN = b"\x7fELF\x02\x01"


class Reader:
    """A position in little-endian data."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def unsigned(self, size: int) -> int:
        """An unsigned integer of `size` bytes."""
        self.position += size
        return int.from_bytes(self.data[self.position - size : self.position], "little")

    def signed(self, size: int) -> int:
        """A signed integer of `size` bytes."""
        self.position += size
        return int.from_bytes(
            self.data[self.position - size : self.position], "little", signed=True
        )

    def uleb(self) -> int:
        """An unsigned LEB128 number (DWARF 4, section 7.6)."""
        value = shift = 0
        while True:
            byte = self.data[self.position]
            self.position += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                return value

    def sleb(self) -> int:
        """A signed LEB128 number."""
        start = self.position
        value = self.uleb()
        bits = 7 * (self.position - start)
        return value - (1 << bits) if value >> (bits - 1) & 1 else value

    def text(self) -> str:
        """A string that ends with a zero byte."""
        end = self.data.index(0, self.position)
        start, self.position = self.position, end + 1
        return self.data[start:end].decode("utf-8", "replace")

    def skip(self, size: int) -> None:
        """Go on `size` bytes further."""
        self.position += size


def elf_sections(path: Path) -> dict[str, bytes]:
    """The `.debug_*` sections of a 64-bit little-endian ELF file by name; none for another kind
    of file."""
    data = path.read_bytes()
    if data[:6] != _ELF64_LITTLE_ENDIAN:
        return {}
    (headers,) = struct.unpack_from("<Q", data, 0x28)
    size, count, names = struct.unpack_from("<HHH", data, 0x3A)
    rows = [
        struct.unpack_from("<IIQQQQ", data, headers + index * size)[:6] for index in range(count)
    ]
    strings = rows[names][4]
    sections = dict[str, bytes]()
    for name_offset, _, _, _, offset, length in rows:
        name = Reader(data, strings + name_offset).text()
        if name.startswith(".debug_"):
            sections[name] = data[offset : offset + length]
    return sections
