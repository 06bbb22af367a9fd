"""One launch of one kernel, prepared once for all calls that look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...problem import AttentionInputs, AttentionProblem
from . import bindings
from .params import Geometry
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


class Launch(NamedTuple):
    """A compiled kernel with all its arguments but the tensors."""

    function: Callable[..., None]
    operands: tuple[int, ...]  # indices of what a call gives, in binding order
    constants: tuple[tuple[float, ...], ...]  # the integers, and the floats if there are any
    threads: tuple[int, int, int]
    group_size: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        variant: Variant,
        constants: tuple[tuple[float, ...], ...],
        groups: tuple[int, int, int],
        group: int,
        known: tuple[str, ...] = OPERANDS,
    ) -> Launch:
        """``groups`` threadgroups of ``group`` threads, given operands named as in ``known``."""
        return cls(
            runtime.kernel(variant),
            tuple(known.index(name) for name in bindings.bound(variant)),
            constants,
            (groups[0] * group, groups[1], groups[2]),
            (group, 1, 1),
        )

    def run(self, operands: tuple[Tensor | None, ...]) -> None:
        self.function(
            *[operands[index] for index in self.operands],
            *self.constants,
            threads=self.threads,
            group_size=self.group_size,
        )


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
