"""Tile shapes of the Metal kernels by GPU family, from tiles.txt, and the budgets they hold to.

Nothing in that table was measured: no Apple GPU was at hand. Its rows follow from two budgets, per
lane registers and threadgroup memory, and from published designs for the same family (block sizes
of MLX's steel attention and of metal-flash-attention). A measurement replaces a row and says so in
its origin column. Which tile a call runs with is chosen in ``engines/metal/tile_choice.py``.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import NamedTuple

KERNELS = ("forward", "decode", "grad q", "grad kv")
SIZES = ("small", "large")
THREADGROUP_BYTES = 32 * 1024  # Apple7 and later, per threadgroup
DECODE_QUERIES = 8  # a sequence, up to which the decode kernel is chosen
# Splits over keys: enough threadgroups to fill the cores, each with enough keys to pay for it.
_THREADGROUPS_PER_CORE = 4
MOST_SPLITS = 32  # a lane of the combining simdgroup each
LARGEST_TILE = 128  # rows of a threadgroup
_LEAST_ROWS = {"simdgroup": 8, "tensor": 16}  # of a simdgroup: one fragment


class Tile(NamedTuple):
    """Shape of one threadgroup's work: it owns some rows and streams others.

    Forward and the gradient of q own queries and stream blocks of ``streamed`` keys; the gradients
    of k and v own keys and stream queries. ``team`` simdgroups share ``rows`` rows, and each has a
    part of the head dimensions. Streamed blocks are ``staged`` in threadgroup memory, or each
    simdgroup reads them from device memory. ``unit`` is what multiplies: "simdgroup" matrices, or
    "tensor" operations.
    """

    streamed: int
    rows: int
    simdgroups: int
    owned_in_registers: bool
    staged: bool = True
    team: int = 1
    unit: str = "simdgroup"

    @property
    def owned(self) -> int:
        return self.rows * self.simdgroups // self.team

    @property
    def threads(self) -> int:
        return 32 * self.simdgroups

    def halved(self) -> Tile | None:
        """The same with half the rows, in half the simdgroups if it can be; None for the least."""
        if self.simdgroups % (2 * self.team) == 0:
            return self._replace(simdgroups=self.simdgroups // 2)
        if self.rows > _LEAST_ROWS[self.unit]:
            return self._replace(rows=self.rows // 2)
        return None


class Row(NamedTuple):
    """A row of tiles.txt, whose head says what the columns mean."""

    kernel: str
    family: str
    bits: int
    head_dim: int
    size: str
    tile: Tile
    split: int  # 0 but for a decode
    origin: str

    @classmethod
    def parse(cls, line: str) -> Row:
        """The row of a line of text. Raises ValueError where it is none."""
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) != 14:
            raise ValueError(f"a row of tiles has 14 columns, got {len(cells)} in {line!r}")
        kernel, unit, family, bits, head_dim, size, *shape, owned, streams, split, origin = cells
        streamed, rows, simdgroups, team = map(int, shape)
        if kernel not in KERNELS or unit not in _LEAST_ROWS or size not in ("any", *SIZES):
            raise ValueError(f"no such kernel, unit or size of problem: {line!r}")
        if min(streamed, rows, simdgroups, team) < 1 or simdgroups % team:
            raise ValueError(f"simdgroups must be so many teams: {line!r}")
        if owned not in ("registers", "device") or streams not in ("staged", "device"):
            raise ValueError(f"rows are in registers or device, blocks staged or device: {line!r}")
        tile = Tile(
            *(streamed, rows, simdgroups, owned == "registers", streams == "staged", team, unit)
        )
        keys = 0 if split == "-" else int(split)
        return cls(kernel, family, int(bits), int(head_dim), size, tile, keys, origin)

    def __str__(self) -> str:
        """The line of text."""
        tile = self.tile
        return (
            f"{self.kernel:7} | {tile.unit:9} | {self.family:7} | {self.bits:4} | "
            f"{self.head_dim:8} | {self.size:5} | {tile.streamed:8} | {tile.rows:4} | "
            f"{tile.simdgroups:10} | {tile.team:4} | "
            f"{'registers' if tile.owned_in_registers else 'device':9} | "
            f"{'staged' if tile.staged else 'device':7} | {self.split or '-':>5} | {self.origin}"
        )


def tile_of(
    kernel: str,
    family: int,
    element_bytes: int,
    head_dim: int,
    head_dim_v: int,
    unit: str = "simdgroup",
) -> Tile:
    """The tile of a large problem in tiles.txt: :func:`row_of`."""
    return row_of(kernel, family, element_bytes, head_dim, head_dim_v, unit).tile


def row_of(
    kernel: str,
    family: int,
    element_bytes: int,
    head_dim: int,
    head_dim_v: int,
    unit: str = "simdgroup",
    size: str = "large",
) -> Row:
    """The row of ``kernel`` (forward, decode, grad q, grad kv) for an Apple GPU family (7 to 10).

    ``size`` is that of the problem: "small" or "large".
    """
    rows = _rows(kernel, unit, family_name(family, unit), 8 * element_bytes)
    largest = max(head_dim, head_dim_v)
    return next(row for row in rows if largest <= row.head_dim and row.size in ("any", size))


def family_name(family: int, unit: str = "simdgroup") -> str:
    """The family whose rows an Apple GPU family takes: Apple8 shares Apple7's, Apple10 Apple9's."""
    if unit == "tensor":
        return "Apple10"
    return "Apple9" if family >= 9 else "Apple7"


def most_head_dim(kernel: str, unit: str = "simdgroup") -> int:
    """The largest head dimension that ``kernel`` has a tile for."""
    family = family_name(7, unit)
    return max(row.head_dim for bits in (16, 32) for row in _rows(kernel, unit, family, bits))


def splits_of(cores: int, groups: int, keys: int, least: int = 1024) -> int:
    """How many parts a decode cuts its keys into, where ``groups`` threadgroups have them all.

    Each gets at least ``least`` keys.
    """
    wanted = -(-_THREADGROUPS_PER_CORE * cores // groups)
    return max(1, min(wanted, keys // least))


def threadgroup_bytes(
    kernel: str, tile: Tile, element_bytes: int, head_dim: int, head_dim_v: int
) -> int:
    """Threadgroup memory of a threadgroup: streamed blocks, and what the parts of a team exchange.

    Rows are padded by up to 32 bytes. A decode also gathers the shares of its teams.
    """
    parts = [_part(tile, d) for d in (head_dim, head_dim_v)]
    row_bytes = sum(tile.team * part * element_bytes + 32 for part in parts)
    products = 2 if kernel.startswith("grad") else 1
    exchanged = products * tile.simdgroups * tile.rows * tile.streamed * 4
    shares = tile.team * tile.rows // 8 * (parts[1] // 4 + 2) * 128
    statistics = 8 * tile.streamed if kernel == "grad kv" else 0
    return (
        (tile.streamed * row_bytes if tile.staged else 0)
        + (exchanged if tile.team > 1 else 0)
        + (shares if kernel == "decode" else 0)
        + statistics
    )


def registers(kernel: str, tile: Tile, element_bytes: int, head_dim: int, head_dim_v: int) -> int:
    """Estimated 32-bit registers a lane, with 24 for addresses and state.

    Accumulators and products are fp32; the owned operands are elements, where they are kept.
    """
    lane = tile.rows // 8 * 2  # elements a lane holds of each 8 columns
    d, dv = (lane * _part(tile, dim) // 8 for dim in (head_dim, head_dim_v))
    accumulated = {"grad q": d, "grad kv": d + dv}.get(kernel, dv)
    products = (2 if kernel.startswith("grad") else 1) * lane * tile.streamed // 8
    owned = (d + dv if kernel.startswith("grad") else d) * element_bytes // 4
    return accumulated + products + (owned if tile.owned_in_registers else 0) + 24


def _part(tile: Tile, head_dim: int) -> int:
    """The columns of one simdgroup, padded as the tile headers cut them."""
    step = 32 if tile.unit == "tensor" else 8 if tile.team == 1 else 32
    return -(-head_dim // (step * tile.team)) * step


@cache
def _rows(kernel: str, unit: str, family: str, bits: int) -> tuple[Row, ...]:
    key = kernel, unit, family, bits
    return tuple(r for r in _table() if (r.kernel, r.tile.unit, r.family, r.bits) == key)


@cache
def _table() -> tuple[Row, ...]:
    # The name of this package, which is another in the Hugging Face kernels library.
    package = resources.files(__name__.rpartition(".")[0])
    text = package.joinpath("tiles.txt").read_text(encoding="ascii")
    lines = [line for line in text.splitlines() if "|" in line and not line.startswith("#")]
    return tuple(map(Row.parse, lines[1:]))
