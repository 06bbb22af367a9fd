"""Tile shapes of the tile kernels by GPU family: a text table, and the budgets it holds to.

Nothing here was measured: no Apple GPU was at hand. The rows follow from two budgets, per lane
registers and threadgroup memory, and from published designs for the same family (block sizes of
MLX's steel attention and of metal-flash-attention). A measurement replaces a row and says so in its
origin column.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

THREADGROUP_BYTES = 32 * 1024  # Apple7 and later, per threadgroup
DECODE_QUERIES = 8  # a sequence, up to which the decode kernel is chosen
# Splits over keys: enough threadgroups to fill the cores, each with enough keys to pay for it.
_THREADGROUPS_PER_CORE = 4
_LEAST_KEYS = 1024
MOST_SPLITS = 32  # a lane of the combining simdgroup each


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


# kernel: the products it accumulates. bits: of an element. head_dim: the first row that reaches
# max(D, Dv). rows: owned rows a simdgroup, which are kept in registers, or read again for every
# streamed block where registers run out. origin: "budget", or "spills" where no shape keeps to it.
_TABLE = """
    kernel  | family | bits | head_dim | streamed | rows | simdgroups | owned     | origin
    forward | Apple7 |   16 |       80 |       32 |    8 |          4 | registers | budget
    forward | Apple7 |   16 |      128 |       16 |    8 |          4 | registers | budget
    forward | Apple7 |   16 |      256 |       16 |    8 |          4 | device    | budget
    forward | Apple7 |   32 |       64 |       16 |    8 |          4 | registers | budget
    forward | Apple7 |   32 |      128 |       16 |    8 |          4 | device    | budget
    forward | Apple7 |   32 |      256 |        8 |    8 |          4 | device    | budget
    forward | Apple9 |   16 |       64 |       32 |   16 |          4 | registers | budget
    forward | Apple9 |   16 |      128 |       16 |    8 |          4 | registers | budget
    forward | Apple9 |   16 |      256 |       16 |    8 |          4 | device    | budget
    forward | Apple9 |   32 |       64 |       16 |    8 |          4 | registers | budget
    forward | Apple9 |   32 |      128 |       16 |    8 |          4 | device    | budget
    forward | Apple9 |   32 |      256 |        8 |    8 |          4 | device    | budget
    decode  | Apple7 |   16 |       80 |       32 |   16 |          4 | registers | budget
    decode  | Apple7 |   16 |      128 |       16 |    8 |          4 | registers | budget
    decode  | Apple7 |   16 |      256 |       16 |    8 |          4 | device    | budget
    decode  | Apple7 |   32 |       64 |       16 |    8 |          4 | registers | budget
    decode  | Apple7 |   32 |      128 |       16 |    8 |          4 | device    | budget
    decode  | Apple7 |   32 |      256 |        8 |    8 |          4 | device    | budget
    decode  | Apple9 |   16 |       80 |       32 |   16 |          4 | registers | budget
    decode  | Apple9 |   16 |      128 |       16 |    8 |          4 | registers | budget
    decode  | Apple9 |   16 |      256 |       16 |    8 |          4 | device    | budget
    decode  | Apple9 |   32 |       64 |       16 |    8 |          4 | registers | budget
    decode  | Apple9 |   32 |      128 |       16 |    8 |          4 | device    | budget
    decode  | Apple9 |   32 |      256 |        8 |    8 |          4 | device    | budget
    grad q  | Apple7 |   16 |       80 |       32 |    8 |          4 | registers | budget
    grad q  | Apple7 |   16 |      128 |       16 |    8 |          4 | registers | budget
    grad q  | Apple7 |   16 |      256 |       16 |    8 |          4 | device    | budget
    grad q  | Apple7 |   32 |       64 |       16 |    8 |          4 | registers | budget
    grad q  | Apple7 |   32 |      128 |       16 |    8 |          4 | device    | budget
    grad q  | Apple7 |   32 |      256 |        8 |    8 |          4 | device    | budget
    grad q  | Apple9 |   16 |       64 |       16 |   16 |          4 | registers | budget
    grad q  | Apple9 |   16 |      128 |       16 |    8 |          4 | registers | budget
    grad q  | Apple9 |   16 |      256 |       16 |    8 |          4 | device    | budget
    grad q  | Apple9 |   32 |       64 |       16 |    8 |          4 | registers | budget
    grad q  | Apple9 |   32 |      128 |       16 |    8 |          4 | device    | budget
    grad q  | Apple9 |   32 |      256 |        8 |    8 |          4 | device    | budget
    grad kv | Apple7 |   16 |       80 |       32 |    8 |          4 | registers | budget
    grad kv | Apple7 |   16 |      128 |       16 |    8 |          4 | device    | budget
    grad kv | Apple7 |   16 |      256 |       16 |    8 |          4 | device    | spills
    grad kv | Apple7 |   32 |       64 |       16 |    8 |          4 | registers | budget
    grad kv | Apple7 |   32 |      128 |       16 |    8 |          4 | device    | budget
    grad kv | Apple7 |   32 |      256 |        8 |    8 |          4 | device    | spills
    grad kv | Apple9 |   16 |       80 |       32 |    8 |          4 | registers | budget
    grad kv | Apple9 |   16 |      128 |       16 |    8 |          4 | device    | budget
    grad kv | Apple9 |   16 |      256 |       16 |    8 |          4 | device    | spills
    grad kv | Apple9 |   32 |       64 |       16 |    8 |          4 | registers | budget
    grad kv | Apple9 |   32 |      128 |       16 |    8 |          4 | device    | budget
    grad kv | Apple9 |   32 |      256 |        8 |    8 |          4 | device    | spills
"""


def tile_of(kernel: str, family: int, element_bytes: int, head_dim: int, head_dim_v: int) -> Tile:
    """The tile of ``kernel`` (forward, decode, grad q, grad kv) for an Apple GPU family (7 to 10).

    Apple8 shares Apple7's rows, Apple10 shares Apple9's.
    """
    rows = _rows(kernel, "Apple9" if family >= 9 else "Apple7", 8 * element_bytes)
    largest = max(head_dim, head_dim_v)
    return next(tile for most, tile in rows if largest <= most)


def splits_of(cores: int, groups: int, keys: int) -> int:
    """How many parts a decode cuts its keys into, where ``groups`` threadgroups have them all."""
    wanted = -(-_THREADGROUPS_PER_CORE * cores // groups)
    return max(1, min(wanted, keys // _LEAST_KEYS))


def threadgroup_bytes(tile: Tile, element_bytes: int, head_dim: int, head_dim_v: int) -> int:
    """Threadgroup memory of the two streamed blocks of one threadgroup, rows padded by 32 bytes."""
    row_bytes = sum(_padded(d) * element_bytes + 32 for d in (head_dim, head_dim_v))
    return tile.streamed * row_bytes


def registers(kernel: str, tile: Tile, element_bytes: int, head_dim: int, head_dim_v: int) -> int:
    """Estimated 32-bit registers a lane, with 24 for addresses and state.

    Accumulators and products are fp32; the owned operands are elements, where they are kept.
    """
    lane = tile.rows // 8 * 2  # elements a lane holds of each 8 columns
    d, dv = (lane * _padded(dim) // 8 for dim in (head_dim, head_dim_v))
    accumulated = {"grad q": d, "grad kv": d + dv}.get(kernel, dv)
    products = (2 if kernel.startswith("grad") else 1) * lane * tile.streamed // 8
    owned = (d + dv if kernel.startswith("grad") else d) * element_bytes // 4
    return accumulated + products + (owned if tile.owned_in_registers else 0) + 24


def _padded(head_dim: int) -> int:
    return -(-head_dim // 8) * 8


@cache
def _rows(kernel: str, family: str, element_bits: int) -> tuple[tuple[int, Tile], ...]:
    rows: list[tuple[int, Tile]] = []
    for line in _TABLE.strip().splitlines()[1:]:
        *key, head_dim, streamed, owned_rows, simdgroups, owned, _ = map(str.strip, line.split("|"))
        if key == [kernel, family, str(element_bits)]:
            tile = Tile(int(streamed), int(owned_rows), int(simdgroups), owned == "registers")
            rows.append((int(head_dim), tile))
    return tuple(rows)
