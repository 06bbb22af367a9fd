"""One launch of one kernel, prepared once for all calls that look alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ...problem import AttentionInputs
from . import bindings
from .params import Geometry
from .runtime import Runtime
from .variant import KernelVariant

WIDEST_LOAD = 16  # bytes

# What kernels may bind, by name; a call fills as much of it as its kernels know.
OPERANDS = (
    *AttentionInputs._fields,
    *("o", "lse"),
    *("grad_o", "grad_lse", "delta", "grad_q", "grad_k", "grad_v", "grad_bias"),
)


class Launch(NamedTuple):
    """A compiled kernel with all its arguments but the tensors."""

    function: Callable[..., None]
    operands: tuple[int, ...]  # indices into OPERANDS, in binding order
    integers: tuple[int, ...]
    scalars: tuple[float, ...]
    threads: tuple[int, int, int]
    group_size: tuple[int, int, int]

    @classmethod
    def of(
        cls,
        runtime: Runtime,
        variant: KernelVariant,
        scalars: tuple[tuple[int, ...], tuple[float, ...]],
        groups: tuple[int, int, int],
        group: int,
    ) -> Launch:
        """``groups`` threadgroups of ``group`` threads; ``scalars`` are integers and floats."""
        return cls(
            runtime.kernel(variant),
            tuple(OPERANDS.index(name) for name in bindings.bound(variant)),
            *scalars,
            (groups[0] * group, groups[1], groups[2]),
            (group, 1, 1),
        )

    def run(self, operands: tuple[Tensor | None, ...]) -> None:
        self.function(
            *[operands[index] for index in self.operands],
            self.integers,
            self.scalars,
            threads=self.threads,
            group_size=self.group_size,
        )


def widest_load(row_bytes: int, element_bytes: int, addresses: int, geometry: Geometry) -> int:
    """Elements in the widest device load that every row of every operand is aligned to.

    ``row_bytes`` and ``addresses`` hold the low bits of all rows' sizes and of all addresses.
    """
    bits = WIDEST_LOAD | addresses | row_bytes
    for strides in (geometry.q, geometry.k, geometry.v, geometry.grad_o or ()):
        for stride in strides[:-1]:
            bits |= element_bytes * stride
    return (bits & -bits) // element_bytes
