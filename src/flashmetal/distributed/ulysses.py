"""Attention with rows exchanged for heads: DeepSpeed-Ulysses (Jacobs et al., 2023).

Every rank gets all rows of Hq / ranks query heads, attends, and gives back the rows of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import gcd
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..ops import attend
from ..problem import AttentionInputs, Request
from .groups import Ranks
from .sharding import Sharding, index_of

_ROWS, _HEADS = -3, -2


class Ulysses(NamedTuple):
    """One call: who takes part, who holds what, and what is asked for."""

    ranks: Ranks
    sharding: Sharding
    request: Request


def ulysses_attention(inputs: AttentionInputs, ulysses: Ulysses) -> tuple[Tensor, Tensor]:
    """(o, lse) of this rank's rows."""
    ranks, sharding = ulysses.ranks, ulysses.sharding
    size, heads = ranks.size, inputs.q.shape[_HEADS]
    # As many copies of each key head as let every rank have whole groups.
    copies = size // gcd(inputs.k.shape[_HEADS], size)
    k, v = (x if copies == 1 else x.repeat_interleave(copies, _HEADS) for x in (inputs.k, inputs.v))
    rows_q = _Rows(ranks, sharding, sharding.seqlens_q)
    rows_k = _Rows(ranks, sharding, sharding.seqlens_k)
    q = _exchange(inputs.q, rows_q, True)
    k, v = (_exchange(x, rows_k, True) for x in (k, v))
    own = slice(ranks.rank * heads // size, (ranks.rank + 1) * heads // size)
    vectors = {
        name: None if x is None else x[..., own]
        for name, x in (("alibi_slopes", inputs.alibi_slopes), ("sinks", inputs.sinks))
    }
    o, lse = attend(inputs._replace(q=q, k=k, v=v, **vectors), ulysses.request)
    o = _exchange(o, rows_q, False)
    lse = _exchange(lse.transpose(-1, -2)[..., None], rows_q, False)
    return o, lse[..., 0].transpose(-1, -2).contiguous()


class _Rows(NamedTuple):
    """One side of a call, queries or keys."""

    ranks: Ranks
    sharding: Sharding
    seqlens: tuple[int, ...]

    def order(self, device: torch.device) -> Tensor:
        """The rows of all ranks, one rank after the other, as an index into the whole."""
        spans = [
            span
            for rank in range(self.ranks.size)
            for span in self.sharding.rows(self.seqlens, rank)
        ]
        return index_of(spans, device)

    def to_heads(self, x: Tensor) -> Tensor:
        """(..., own rows, H, D) to (..., all rows, H / ranks, D)."""
        size = self.ranks.size
        shapes: list[tuple[int, ...]] = []
        for rank in range(size):
            rows = sum(self.sharding.lengths(self.seqlens, rank))
            shapes.append((*x.shape[:_ROWS], rows, x.shape[_HEADS] // size, x.shape[-1]))
        found = torch.cat(self.ranks.all_to_all(x.chunk(size, _HEADS), shapes), _ROWS)
        return torch.empty_like(found).index_copy_(found.ndim + _ROWS, self.order(x.device), found)

    def to_rows(self, x: Tensor) -> Tensor:
        """The way back."""
        rows = [sum(self.sharding.lengths(self.seqlens, rank)) for rank in range(self.ranks.size)]
        ordered = x.index_select(x.ndim + _ROWS, self.order(x.device))
        parts: Sequence[Tensor] = torch.split(ordered, rows, _ROWS)
        own = (*x.shape[:_ROWS], rows[self.ranks.rank], *x.shape[_HEADS:])
        return torch.cat(self.ranks.all_to_all(parts, [own] * self.ranks.size), _HEADS)


class _Exchange(torch.autograd.Function):
    """Rows for heads, or back; the gradient goes the other way."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, rows: _Rows, to_heads: bool
    ) -> Tensor:
        ctx.rows, ctx.to_heads = rows, to_heads
        return rows.to_heads(x) if to_heads else rows.to_rows(x)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        return ctx.rows.to_rows(grad) if ctx.to_heads else ctx.rows.to_heads(grad), None, None


_exchange = cast("Callable[[Tensor, _Rows, bool], Tensor]", _Exchange.apply)
