"""One launch of one kernel, prepared once for all calls that look alike."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from typing import NamedTuple

from torch import Tensor

from ...problem import AttentionProblem
from ...request import AttentionInputs
from . import bindings
from .params import INTEGERS, Geometry
from .runtime import Runtime
from .variant import Loads, Variant

WIDEST_LOAD = 16  # bytes

# What kernels may bind, by name; a call fills as much of it as its kernels know.
OPERANDS = (
    *AttentionInputs._fields,
    *("o", "lse"),
    *("partial_o", "partial_lse"),
    *("grad_o", "grad_lse", "delta", "grad_q", "grad_k", "grad_v", "grad_bias", "distances"),
)


# Multiply-adds a core does in half a second, at half the rate of M1's matrix unit: macOS may kill
# what keeps the GPU busy for longer, so that longer launches are cut into several.
WORK_PER_CORE = 33_000_000_000
# Multiply-adds in the time of a byte from memory, of which M1 gives a core 8.5 GB in a second.
_WORK_PER_BYTE = 8

Constants = tuple[tuple[float, ...], ...]  # the integers, and the floats if there are any


class Launch(NamedTuple):
    """A compiled kernel with all its arguments but the tensors, in one part or more."""

    function: Callable[..., None]
    operands: tuple[int, ...]  # indices of what a call gives, in binding order
    parts: tuple[tuple[Constants, tuple[int, int, int]], ...]  # constants and threads
    group_size: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        variant: Variant,
        constants: Constants,
        groups: tuple[int, int, int],
        group: int,
        known: tuple[str, ...] = OPERANDS,
        work: int = 0,
        blocks: int | None = None,
    ) -> Launch:
        """``groups`` threadgroups of ``group`` threads, given operands named as in ``known``.

        ``work`` is the multiply-adds of one of them, by which launches are cut; a kernel whose
        work is 0 is not cut. ``blocks`` are the whole blocks of rows that all sequences of a packed
        batch have together, if x counts blocks and z sequences: most threadgroups may find none.
        """
        most = max(WORK_PER_CORE * runtime.gpu.cores // work if work else math.prod(groups), 1)
        cut = _parts(groups, most) if blocks is None else _packed_parts(groups, most, blocks)
        parts: list[tuple[Constants, tuple[int, int, int]]] = []
        for first, (x, y, z) in cut:
            integers = list(constants[0])
            if any(first):
                at = INTEGERS.index("first_x")
                integers[at : at + 3] = first
            parts.append(((tuple(integers), *constants[1:]), (x * group, y, z)))
        return cls(
            runtime.kernel(variant),
            tuple(known.index(name) for name in bindings.bound(variant)),
            tuple(parts),
            (group, 1, 1),
        )

    def run(self, operands: tuple[Tensor | None, ...]) -> None:
        tensors = [operands[index] for index in self.operands]
        for constants, threads in self.parts:
            self.function(*tensors, *constants, threads=threads, group_size=self.group_size)


def packed_blocks(problem: AttentionProblem, rows: int, owned: int) -> int | None:
    """Whole blocks of ``owned`` among the packed rows of all sequences; None of a dense batch."""
    return rows // owned if problem.layout == "varlen" else None


_Part = tuple[tuple[int, int, int], tuple[int, int, int]]


def _parts(groups: tuple[int, int, int], most: int) -> Iterator[_Part]:
    """(first, count) of parts of at most ``most`` threadgroups: cut in x, then z, then y."""
    steps = list(groups)
    for axis in (0, 2, 1):
        others = steps[0] * steps[1] * steps[2] // max(steps[axis], 1)
        steps[axis] = max(1, min(steps[axis], most // max(others, 1)))
    ranges = [range(0, max(n, 1), step) for n, step in zip(groups, steps, strict=True)]
    for x, y, z in product(*ranges):
        left = groups[0] - x, groups[1] - y, groups[2] - z
        yield (x, y, z), (min(steps[0], left[0]), min(steps[1], left[1]), min(steps[2], left[2]))


def _packed_parts(groups: tuple[int, int, int], most: int, blocks: int) -> Iterator[_Part]:
    """Parts in which at most ``most`` threadgroups find a block, however long each sequence is."""
    last, heads, sequences = groups[0], groups[1], groups[2]
    step = max(1, min(heads, most // max(_most_found(0, last, sequences, blocks), 1)))
    x = 0
    while x < last:
        found = partial(_most_found, x, sequences=sequences, blocks=blocks)
        width = max(bisect_right(range(1, last - x + 1), most // step, key=found), 1)
        together = sequences if step * found(width) <= most else max(1, most // step)
        for y, z in product(range(0, heads, step), range(0, sequences, together)):
            yield (x, y, z), (width, min(step, heads - y), min(together, sequences - z))
        x += width


def _most_found(x: int, width: int, sequences: int, blocks: int) -> int:
    """How many blocks x .. x + width - 1 there can be, of one head.

    A sequence that reaches block x and has n of them has x + n - 1 whole blocks before its last.
    """
    found = blocks + sequences if x == 0 else blocks * width // (width + x - 1)
    return min(found, sequences * width)


def work_of(problem: AttentionProblem, owned: int, streamed: int, products: float) -> int:
    """Multiply-adds of a threadgroup that owns ``owned`` rows and streams ``streamed`` others.

    It makes ``products`` for each pair, each with a row of the larger head dimension; a window
    bounds what is streamed. Where few rows share what is streamed, the time is that of its bytes.
    """
    if problem.window_left >= 0 and problem.window_right >= 0:
        streamed = min(streamed, problem.window_left + problem.window_right + owned)
    dims = max(problem.head_dim, problem.head_dim_v)
    read = _WORK_PER_BYTE * 2 * problem.dtype.itemsize
    return int(streamed * dims * max(owned * products, read))


class Addresses(NamedTuple):
    """The low bits of the addresses of q (and o and gradients), of k and of v, in bytes."""

    q: int
    k: int
    v: int


def loads_of(problem: AttentionProblem, geometry: Geometry, addresses: Addresses) -> Loads:
    """The widest loads that every row of every operand is aligned to."""
    size = problem.dtype.itemsize
    rows = problem.head_dim | problem.head_dim_v  # of o and the gradients, which are contiguous
    q = widest_load(size, addresses.q, (rows, *geometry.q[:-1], *(geometry.grad_o or ())[:-1]))
    loads = [q]
    for cache_format, head_dim, address, strides in (
        (problem.k_format, problem.head_dim, addresses.k, geometry.k),
        (problem.v_format, problem.head_dim_v, addresses.v, geometry.v),
    ):
        codes = widest_load(
            size if cache_format == "dense" else 1,
            address,
            (head_dim // 2 if cache_format == "int4" else head_dim, *strides[:-1]),
        )
        elements = 2 * codes if cache_format == "int4" else codes
        loads.append(min(elements, WIDEST_LOAD // size))
    return Loads(*loads)


def widest_load(element_bytes: int, address: int, strides: tuple[int, ...]) -> int:
    """Elements in the widest load at an address and all multiples of strides, in elements."""
    bits = WIDEST_LOAD | address
    for stride in strides:
        bits |= element_bytes * stride
    return (bits & -bits) // element_bytes
