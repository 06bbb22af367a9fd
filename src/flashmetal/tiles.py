"""Tile shapes of the tile kernels by GPU family: text tables, and the budgets they hold to.

Nothing here was measured: no Apple GPU was at hand. The rows follow from two budgets, per lane
registers and threadgroup memory, and from published designs for the same family (block sizes of
MLX's steel attention and of metal-flash-attention). A measurement replaces a row and says so in its
origin column.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

THREADGROUP_BYTES = 32 * 1024  # Apple7 and later, per threadgroup


class Tile(NamedTuple):
    """Shape of one threadgroup's work: it owns ``simdgroups`` x ``rows`` rows and streams others.

    Forward and the gradient of q own queries and stream blocks of ``streamed`` keys; the gradients
    of k and v own keys and stream queries.
    """

    streamed: int
    rows: int
    simdgroups: int
    owned_in_registers: bool

    @property
    def owned(self) -> int:
        return self.rows * self.simdgroups

    @property
    def threads(self) -> int:
        return 32 * self.simdgroups


# First row whose head_dim reaches max(D, Dv). rows: owned rows a simdgroup, which are kept in
# registers, or read again for every streamed block where registers run out.
_FORWARD = {
    ("Apple7", 16): """
        head_dim | streamed | rows | simdgroups | owned     | origin
              80 |       32 |    8 |          4 | registers | budget
             128 |       16 |    8 |          4 | registers | budget
             256 |       16 |    8 |          4 | device    | budget
    """,
    ("Apple7", 32): """
        head_dim | streamed | rows | simdgroups | owned     | origin
              64 |       16 |    8 |          4 | registers | budget
             128 |       16 |    8 |          4 | device    | budget
             256 |        8 |    8 |          4 | device    | budget
    """,
    ("Apple9", 16): """
        head_dim | streamed | rows | simdgroups | owned     | origin
              64 |       32 |   16 |          4 | registers | budget
             128 |       16 |    8 |          4 | registers | budget
             256 |       16 |    8 |          4 | device    | budget
    """,
    ("Apple9", 32): """
        head_dim | streamed | rows | simdgroups | owned     | origin
              64 |       16 |    8 |          4 | registers | budget
             128 |       16 |    8 |          4 | device    | budget
             256 |        8 |    8 |          4 | device    | budget
    """,
}


def forward_tile(family: int, element_bytes: int, head_dim: int, head_dim_v: int) -> Tile:
    """The tile of the forward kernel for an Apple GPU family (7 to 10) and a head of D and Dv.

    Apple8 shares Apple7's table, Apple10 shares Apple9's.
    """
    table = _table("Apple9" if family >= 9 else "Apple7", 8 * element_bytes)
    largest = max(head_dim, head_dim_v)
    return next(tile for most, tile in table if largest <= most)


def threadgroup_bytes(tile: Tile, element_bytes: int, head_dim: int, head_dim_v: int) -> int:
    """Threadgroup memory of one forward threadgroup: a K and a V block with 32 bytes of padding."""
    row_bytes = sum(_padded(d) * element_bytes + 32 for d in (head_dim, head_dim_v))
    return tile.streamed * row_bytes


def registers(tile: Tile, element_bytes: int, head_dim: int, head_dim_v: int) -> int:
    """Estimated 32-bit registers a lane: O and S in fp32, Q if kept, 24 for addresses and state."""
    fragments = tile.rows // 8 * 2  # elements a lane holds of each 8 columns
    output = fragments * _padded(head_dim_v) // 8
    scores = fragments * tile.streamed // 8
    queries = fragments * _padded(head_dim) // 8 * element_bytes // 4
    return output + scores + (queries if tile.owned_in_registers else 0) + 24


def _padded(head_dim: int) -> int:
    return -(-head_dim // 8) * 8


@cache
def _table(family: str, element_bits: int) -> tuple[tuple[int, Tile], ...]:
    rows: list[tuple[int, Tile]] = []
    for line in _FORWARD[family, element_bits].strip().splitlines()[1:]:
        head_dim, streamed, tile_rows, simdgroups, owned, _ = (c.strip() for c in line.split("|"))
        tile = Tile(int(streamed), int(tile_rows), int(simdgroups), owned == "registers")
        rows.append((int(head_dim), tile))
    return tuple(rows)
