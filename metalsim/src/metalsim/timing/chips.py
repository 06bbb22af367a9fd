"""The chips and their families, from the text tables beside this file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

_DIRECTORY = Path(__file__).parent


class Family(NamedTuple):
    """What one core of a family does in a cycle."""

    number: int
    matrix: float
    """Multiply-adds of 8x8 matrices, as reached in a GEMM."""
    tensor: float
    """Multiply-adds of matmul2d on 16-bit operands."""
    exponentials: float
    l1_bytes: float
    """From L1 and threadgroup memory together."""
    l2_bytes: float
    load_to_multiply: float
    """Cycles from the load of a fragment to the end of a multiply that waits for it; 0: not
    known."""
    sources: str


class Chip(NamedTuple):
    """One chip's GPU."""

    name: str
    cores: int
    ghz: float
    family: Family
    dram_gbs: float
    """GB/s that the GPU reaches."""
    sources: str


@functools.lru_cache(maxsize=1)
def chips() -> dict[str, Chip]:
    """Every chip of the table, by name."""
    families = {
        int(row[0]): Family(
            number=int(row[0]),
            matrix=float(row[1]),
            tensor=float(row[2]),
            exponentials=float(row[3]),
            l1_bytes=float(row[4]),
            l2_bytes=float(row[5]),
            load_to_multiply=float(row[6]),
            sources=row[7],
        )
        for row in _rows("families.txt", 8)
    }
    return {
        name: Chip(name, int(cores), float(ghz), families[int(family)], float(dram), sources)
        for name, cores, ghz, family, dram, sources in _rows("chips.txt", 6)
    }


def chip(name: str) -> Chip:
    """The chip of this name, such as "M4" or "M1-Max" (case and separators do not matter).

    Raises ValueError for a name that is not in the table.
    """
    plain = {_plain(known): found for known, found in chips().items()}
    if _plain(name) not in plain:
        raise ValueError(f"no chip is named {name!r}; known are {', '.join(chips())}")
    return plain[_plain(name)]


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def _rows(name: str, columns: int) -> list[list[str]]:
    text = (_DIRECTORY / name).read_text(encoding="ascii")
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return [line.split(maxsplit=columns - 1) for line in lines]
