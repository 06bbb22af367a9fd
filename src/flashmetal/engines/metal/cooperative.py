"""How a GPU lays cooperative tensors over the lanes of a simdgroup: Metal says it only when asked.

The tensor-operation kernels move registers into cooperative tensors as they are where the layout is
known here, and through threadgroup memory where it is not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple, cast

import torch

from .runtime import Runtime
from .variant import MSL_TYPES, declare, tensor_flags

_SLOTS = 16


def _apple10_column(lane_column: int, element: int) -> int:
    return 4 * lane_column + element


def _older_column(lane_column: int, element: int) -> int:
    return 2 * lane_column + element % 2 + 8 * (element // 2)


# The columns of a 16x16 fragment that a lane holds: four side by side on M5, two and two before.
_COLUMNS: dict[str, Callable[[int, int], int]] = {
    "apple10": _apple10_column,
    "older": _older_column,
}


class ProbeVariant(NamedTuple):
    """The kernel that tells the layout, for operands of one dtype."""

    dtype: torch.dtype
    tf32: bool
    kernel: str = "cooperative_probe"

    @property
    def has_tensor_operations(self) -> bool:
        return True

    def prelude(self) -> str:
        types = {"Element": MSL_TYPES[self.dtype]}
        return declare(types, tensor_flags(self.dtype, "", self.tf32), {}, tensor_operations=True)


@lru_cache(maxsize=64)
def layout_of(runtime: Runtime, dtype: torch.dtype, tf32: bool = False) -> str:
    """ "apple10", "older" or "unknown", for operands of ``dtype``; asked of the GPU once."""
    shares = torch.full((2, 3, 32, 1 + _SLOTS), -1, dtype=torch.int32, device=runtime.device)
    probe = runtime.kernel(ProbeVariant(dtype, tf32))
    probe(shares, threads=(32, 1, 1), group_size=(32, 1, 1))
    told = cast("list[list[list[list[int]]]]", shares.tolist())
    return next((name for name in _COLUMNS if told == _shares(name)), "unknown")


def _shares(name: str) -> list[list[list[list[int]]]]:
    """What the probe tells where the layout is ``name``."""
    return [
        [_tensor(name, fragments, stacked) for fragments, stacked in tensors]
        for tensors in (
            ((1, False), (2, False), (2, False)),
            ((1, False), (2, True), (2, False)),
        )
    ]


def _tensor(name: str, fragments: int, stacked: bool) -> list[list[int]]:
    """By lane, the capacity and the places of one tensor of 16x16 fragments."""
    lanes: list[list[int]] = []
    for lane in range(32):
        first_row, lane_column = (lane >> 2 & 4) | (lane >> 1 & 3), (lane >> 2 & 2) | (lane & 1)
        places: list[int] = []
        for slot in range(8 * fragments):
            step = 16 * (slot // 8)
            row = first_row + slot // 4 % 2 * 8 + (step if stacked else 0)
            column = _COLUMNS[name](lane_column, slot % 4) + (0 if stacked else step)
            places.append(row * 32 + column)
        lanes.append([8 * fragments, *places, *[-1] * (_SLOTS - len(places))])
    return lanes
