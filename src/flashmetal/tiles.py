"""Tile shapes of the Metal kernels by GPU family, from tiles.txt, and the budgets they hold to.

Nothing here was measured: no Apple GPU was at hand. The rows follow from two budgets, per lane
registers and threadgroup memory, and from published designs for the same family (block sizes of
MLX's steel attention and of metal-flash-attention). A measurement replaces a row and says so in its
origin column.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import NamedTuple

THREADGROUP_BYTES = 32 * 1024  # Apple7 and later, per threadgroup
DECODE_QUERIES = 8  # a sequence, up to which the decode kernel is chosen
# Splits over keys: enough threadgroups to fill the cores, each with enough keys to pay for it.
_THREADGROUPS_PER_CORE = 4
_LEAST_KEYS = 1024
MOST_SPLITS = 32  # a lane of the combining simdgroup each


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


def tile_of(
    kernel: str,
    family: int,
    element_bytes: int,
    head_dim: int,
    head_dim_v: int,
    unit: str = "simdgroup",
) -> Tile:
    """The tile of ``kernel`` (forward, decode, grad q, grad kv) for an Apple GPU family (7 to 10).

    Apple8 shares Apple7's rows, Apple10 shares Apple9's; all share those of the unit "tensor".
    """
    rows = _rows(kernel, unit, "Apple9" if family >= 9 else "Apple7", 8 * element_bytes)
    largest = max(head_dim, head_dim_v)
    return next(tile for most, tile in rows if largest <= most)


def most_head_dim(kernel: str, unit: str = "simdgroup") -> int:
    """The largest head dimension that ``kernel`` has a tile for."""
    return max(most for bits in (16, 32) for most, _ in _rows(kernel, unit, "Apple7", bits))


def splits_of(cores: int, groups: int, keys: int) -> int:
    """How many parts a decode cuts its keys into, where ``groups`` threadgroups have them all."""
    wanted = -(-_THREADGROUPS_PER_CORE * cores // groups)
    return max(1, min(wanted, keys // _LEAST_KEYS))


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
def _rows(kernel: str, unit: str, family: str, bits: int) -> tuple[tuple[int, Tile], ...]:
    found: list[tuple[int, Tile]] = []
    # The name of this package, which is another in the Hugging Face kernels library.
    package = resources.files(__name__.rpartition(".")[0])
    text = package.joinpath("tiles.txt").read_text(encoding="ascii")
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if (
            cells[:2] == [kernel, unit]
            and cells[2] in (family, "Apple10")
            and cells[3] == str(bits)
        ):
            streamed, rows, simdgroups, team = (int(cell) for cell in cells[5:9])
            kept, staged = cells[9] == "registers", cells[10] == "staged"
            tile = Tile(streamed, rows, simdgroups, kept, staged, team, unit)
            found.append((int(cells[4]), tile))
    return tuple(found)
