"""Attention with rows exchanged for heads: DeepSpeed-Ulysses (Jacobs et al., 2023).

Every rank gets all rows of Hq / ranks query heads, attends, and gives back the rows of the others.
"""

from __future__ import annotations

from collections.abc import Callable
from math import gcd, prod
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..ops import attend
from ..request import AttentionInputs, Request
from .groups import Ranks
from .sharding import Sharding, cached_index

_ROWS, _HEADS = -3, -2


def ulysses_attention(
    inputs: AttentionInputs, ranks: Ranks, sharding: Sharding, request: Request
) -> tuple[Tensor, Tensor]:
    """(o, lse) of this rank's rows."""
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
    o, lse = attend(inputs._replace(q=q, k=k, v=v, **vectors), request)
    o = _exchange(o, rows_q, False)
    lse = _exchange(lse.transpose(-1, -2)[..., None], rows_q, False)
    return o, lse[..., 0].transpose(-1, -2).contiguous()


class _Rows(NamedTuple):
    """One side of a call, queries or keys."""

    ranks: Ranks
    sharding: Sharding
    seqlens: tuple[int, ...]

    def of(self, rank: int, device: torch.device) -> Tensor:
        """A rank's rows, as an index into the whole."""
        return cached_index(self.sharding, self.seqlens, rank, device)

    def shapes(self, x: Tensor, heads: int) -> list[tuple[int, ...]]:
        """The shape of each rank's rows of ``heads`` heads."""
        rows = [sum(self.sharding.lengths(self.seqlens, rank)) for rank in range(self.ranks.size)]
        return [(*x.shape[:_ROWS], count, heads, x.shape[-1]) for count in rows]

    def to_heads(self, x: Tensor) -> Tensor:
        """(..., own rows, H, D) to (..., all rows, H / ranks, D)."""
        size, shapes = self.ranks.size, self.shapes(x, x.shape[_HEADS] // self.ranks.size)
        own = [prod(shapes[self.ranks.rank])] * size
        sent = x.new_empty(sum(own))
        for room, part in zip(torch.split(sent, own), x.chunk(size, _HEADS), strict=True):
            room.view(part.shape).copy_(part)
        pieces = self.ranks.all_to_all(sent, own, [prod(shape) for shape in shapes])
        del sent
        whole = x.new_empty((*x.shape[:_ROWS], sum(self.seqlens), *shapes[0][_HEADS:]))
        for rank, piece in enumerate(pieces):
            rows = self.of(rank, x.device)
            whole.index_copy_(whole.ndim + _ROWS, rows, piece.view(shapes[rank]))
        return whole

    def to_rows(self, x: Tensor) -> Tensor:
        """The way back."""
        shapes = self.shapes(x, x.shape[_HEADS])
        sizes = [prod(shape) for shape in shapes]
        sent = x.new_empty(sum(sizes))
        for rank, room in enumerate(torch.split(sent, sizes)):
            rows = self.of(rank, x.device)
            torch.index_select(x, x.ndim + _ROWS, rows, out=room.view(shapes[rank]))
        own = shapes[self.ranks.rank]
        pieces = self.ranks.all_to_all(sent, sizes, [prod(own)] * self.ranks.size)
        del sent
        return torch.cat([piece.view(own) for piece in pieces], _HEADS)


class _Exchange(torch.autograd.Function):
    """Rows for heads, or back; the gradient goes the other way."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, x: Tensor, rows: _Rows, to_heads: bool
    ) -> Tensor:
        ctx.rows, ctx.to_heads = rows, to_heads
        return rows.to_heads(x) if to_heads else rows.to_rows(x)

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None, None]:
        return _exchange(grad, ctx.rows, not ctx.to_heads), None, None


_exchange = cast("Callable[[Tensor, _Rows, bool], Tensor]", _Exchange.apply)
