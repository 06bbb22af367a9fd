"""One launch of one kernel, prepared once for all calls that look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...problem import AttentionInputs, AttentionProblem
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
# what keeps the GPU busy for longer, so that longer launches are cut along the blocks of rows.
WORK_PER_CORE = 33_000_000_000

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
        block_work: int = 0,
    ) -> Launch:
        """``groups`` threadgroups of ``group`` threads, given operands named as in ``known``.

        ``block_work`` is the multiply-adds of all groups of one block, if the kernel can be cut.
        """
        blocks, *others = groups
        most = WORK_PER_CORE * runtime.gpu.cores // block_work if block_work else blocks
        step = max(1, min(blocks, most))
        parts: list[tuple[Constants, tuple[int, int, int]]] = []
        for first in range(0, max(blocks, 1), step):
            integers = list(constants[0])
            if first:
                integers[INTEGERS.index("first_block")] = first
            threads = (min(step, blocks - first) * group, others[0], others[1])
            parts.append(((tuple(integers), *constants[1:]), threads))
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


def block_work(problem: AttentionProblem, rows: int, products: float) -> int:
    """Multiply-adds of a block of ``rows`` in all heads and sequences, at ``products`` a pair.

    A product is a row of k or of v; the larger of the head dimensions counts.
    """
    seen = problem.seqlen_k
    if problem.window_left >= 0 and problem.window_right >= 0:
        seen = min(seen, problem.window_left + problem.window_right + rows)
    dims = max(problem.head_dim, problem.head_dim_v)
    return int(rows * seen * dims * products * problem.heads_q * problem.batch)


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
