"""The grid of a launch: `threads` and `group_size` by the rules of torch.mps.compile_shader."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import NamedTuple, SupportsIndex, cast

from .arguments import element_count
from .errors import ArgumentError

_LIMIT = 1 << 32


class Grid(NamedTuple):
    """Sizes in threads, one to three dimensions, the same number in both."""

    threads: tuple[int, ...]
    group: tuple[int, ...]


def read_grid(
    kernel: str,
    arguments: Sequence[object],
    threads: object,
    group_size: object,
    max_threads: int,
    required: Sequence[int] = (),
) -> Grid:
    """What torch makes of `threads` and `group_size`.

    `threads` defaults to the elements of the first tensor or array; `group_size` to
    (max_threads, 1, 1), in one dimension to no more than the grid, and to `required`, the only size
    that the kernel takes, where it has one. Raises ValueError for a group that is too large or not
    the required one and for an empty grid, RuntimeError or ArgumentError for the rest.
    """
    grid = _sizes(kernel, "threads", threads)
    group = _sizes(kernel, "group_size", group_size)
    if grid is None:
        counts = (element_count(argument) for argument in arguments)
        count = next((count for count in counts if count is not None), None)
        if count is None:
            raise RuntimeError(
                f"{kernel}: Number of threads is undefined or has wrong dimension: "
                "give threads=, as no argument is a tensor or array"
            )
        grid = (count,)
    if group is None and required:
        group = tuple(required[: len(grid)])
    if group is None:
        first = min(grid[0], max_threads) if len(grid) == 1 else max_threads
        group = (first, *[1] * (len(grid) - 1))
    if len(grid) != len(group):
        raise RuntimeError(
            f"{kernel}: threads has {len(grid)} dimensions and group_size {len(group)}; they "
            "must have the same"
        )
    if required and (*group, 1, 1)[:3] != tuple(required):
        raise ValueError(
            f"{kernel}: requires threadgroups of {list(required)} threads, as its "
            f"required_threads_per_threadgroup says, not {list(group)}: launch it with "
            f"group_size={list(required)} and threads in three dimensions"
        )
    if math.prod(group) > max_threads:
        raise ValueError(
            f"{kernel}: Threadgroup size exceeds {max_threads} limit: group_size {list(group)} has "
            f"{math.prod(group)} threads"
        )
    if not all(grid) or not all(group):
        raise ValueError(
            f"{kernel}: a launch of {list(grid)} threads in groups of {list(group)} is empty, "
            "for which Metal defines nothing: return before the launch"
        )
    return Grid(grid, group)


def _sizes(kernel: str, name: str, value: object) -> tuple[int, ...] | None:
    if value is None:
        return None
    try:
        sizes = (value,) if isinstance(value, int) else _indices(value)
    except TypeError:
        raise ArgumentError(
            f"{kernel}: {name} must be an int or a list of one to three ints, not {value!r}"
        ) from None
    if not 0 < len(sizes) < 4 or not all(0 <= size < _LIMIT for size in sizes):
        raise RuntimeError(
            f"{kernel}: {name} must be one to three sizes from 0 to 2**32 - 1, not {value!r}"
        )
    return sizes


def _indices(value: object) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError
    return tuple(operator.index(size) for size in cast("Sequence[SupportsIndex]", value))
