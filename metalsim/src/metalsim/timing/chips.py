"""The chips and their families, from the text tables beside this file."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from .tables import read_table

_DIRECTORY = Path(__file__).parent


class Family(NamedTuple):
    """What one core of a family does in a cycle, and the cycles from a start to its result."""

    number: int
    matrix: float
    """Multiply-adds of 8x8 matrices of floats."""
    tensor: float
    """Multiply-adds of matmul2d on 16-bit operands."""
    exponentials: float
    l1_bytes: float
    """From L1 and threadgroup memory together."""
    l2_bytes: float
    load_cycles: float
    """From a load of L1 or threadgroup memory to its use."""
    l2_cycles: float
    dram_cycles: float
    shared: str
    """Which other instructions take cycles from 8x8 multiplies: "all" or "float"."""
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

    @property
    def core_hertz(self) -> float:
        """Cycles a second, of all cores together."""
        return self.cores * self.ghz * 1e9


@functools.lru_cache(maxsize=1)
def chips() -> dict[str, Chip]:
    """Every chip of the table, by name."""
    families = {str(row.number): row for row in read_table(_DIRECTORY / "families.txt", Family)}
    rows = read_table(_DIRECTORY / "chips.txt", Chip, {Family: families.__getitem__})
    return {row.name: row for row in rows}


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
