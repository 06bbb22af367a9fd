"""Attention by a ring: shards of keys and values pass from rank to rank during the computation.

Ring attention (Liu et al., 2023), parts merged by their log-sum-exp. Backward sends keys and values
round once more, and the gradients at them follow when a rank has added its part. There each piece
takes the log-sum-exp of whole rows, so nothing is kept of the forward but q, k, v, o and lse. A
rank holds two shards of keys and values beside its own and the gradients of one, in float32 as
those of its queries, and for a moment the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from ..gradients import QueryRows, sink_gradient
from ..merging import join
from ..ops import attend, attention_backward
from ..request import AttentionInputs, Request
from .groups import Ranks, Shift
from .sharding import Meeting, Rows, Sharding, cached_meetings, cached_steps

_ROWS = -3  # of q (B, S, H, D) and (total, H, D); of lse (..., S) the last


class Ring(NamedTuple):
    """One call: who takes part, who holds what, and what is asked for."""

    ranks: Ranks
    sharding: Sharding
    request: Request
    packed: bool

    @property
    def window(self) -> tuple[int, int]:
        return self.request.window_left, 0 if self.request.causal else self.request.window_right

    @property
    def steps(self) -> int:
        return cached_steps(self.sharding, self.window)

    def source(self, step: int) -> int:
        """Whose keys and values are here at a step."""
        return (self.ranks.rank - step) % self.ranks.size

    def meetings(self, step: int, device: torch.device) -> list[Meeting]:
        pair = self.ranks.rank, self.source(step)
        return cached_meetings(self.sharding, self.window, pair, self.packed, device)

    def like(self, x: Tensor, step: int, dtype: torch.dtype | None = None) -> Tensor:
        """Room for the shard that is here at ``step``, of which ``x`` is this rank's own."""
        rows = sum(self.sharding.lengths(self.sharding.seqlens_k, self.source(step)))
        shape = list(x.shape)
        shape[_ROWS] = rows
        return x.new_empty(shape, dtype=dtype)

    def call(
        self, meeting: Meeting, q: Tensor, k: Tensor, v: Tensor
    ) -> tuple[AttentionInputs, Request]:
        """The engine's call for one meeting."""
        inputs = AttentionInputs(_take(q, meeting.q), _take(k, meeting.k), _take(v, meeting.k))
        left, right = meeting.window
        request = self.request._replace(causal=False, window_left=left, window_right=right)
        if meeting.lengths is None:
            return inputs, request._replace(max_seqlen_q=None, max_seqlen_k=None)
        starts_q, starts_k, longest_q, longest_k = meeting.lengths
        inputs = inputs._replace(cu_seqlens_q=starts_q, cu_seqlens_k=starts_k)
        return inputs, request._replace(max_seqlen_q=longest_q, max_seqlen_k=longest_k)


class RingAttention(torch.autograd.Function):
    """(o, lse) of this rank's rows, differentiable once."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, ring: Ring
    ) -> tuple[Tensor, Tensor]:
        rows = (*q.shape[:-3], q.shape[-2], q.shape[-3])
        o = q.new_zeros((*q.shape[:-1], v.shape[-1]), dtype=torch.float32)
        lse = q.new_full(rows, -torch.inf, dtype=torch.float32)
        shard = [k.contiguous(), v.contiguous()]
        for step in range(ring.steps):
            coming = _next_shard(ring, shard, step)
            for meeting in ring.meetings(step, q.device):
                part = attend(*ring.call(meeting, q, *shard))
                _merge((o, lse), meeting.q, part)
            shard = shard if coming is None else coming.wait()
        if sinks is not None:
            _merge((o, lse), (0, q.shape[_ROWS]), (None, sinks.float()[:, None].expand(rows)))
        o = o.to(q.dtype)
        ctx.save_for_backward(q, k, v, sinks, o, lse)
        ctx.ring = ring
        ctx.set_materialize_grads(False)
        return o, lse

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_o: Tensor | None, grad_lse: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        q, k, v, sinks, o, lse = ctx.saved_tensors
        with torch.no_grad():
            grad_o = torch.zeros_like(o) if grad_o is None else grad_o.contiguous()
            rows = QueryRows(o, lse, grad_o, grad_lse)
            grads: tuple[Tensor, ...] = _ring_backward(ctx.ring, q, k, v, rows)
            if sinks is not None:
                # This rank's rows' share of the sum.
                grads = *grads, sink_gradient(sinks, lse, rows.delta()).to(sinks.dtype)
        if torch.is_grad_enabled():
            grads = cast(
                "tuple[Tensor, ...]", _NoSecondDerivative.apply(len(grads), *grads, q, k, v)
            )
        return (*grads, None) if sinks is not None else (*grads, None, None)


class _NoSecondDerivative(torch.autograd.Function):
    """The first ``count`` tensors as they are, which autograd takes to depend on the others."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, count: int, *tensors: Tensor
    ) -> tuple[Tensor, ...]:
        del ctx
        return tensors[:count]

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> None:
        raise NotImplementedError(
            "flashmetal.distributed: the gradients of attention have no gradients of their own "
            "(create_graph=True, gradient penalties, Hessians)"
        )


def _ring_backward(
    ring: Ring, q: Tensor, k: Tensor, v: Tensor, rows: QueryRows
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of this rank's q, k and v. Those of a shard go where it goes."""
    totals = [torch.zeros(x.shape, dtype=torch.float32, device=x.device) for x in (q, k, v)]
    shard, last = [k.contiguous(), v.contiguous()], ring.steps - 1
    for step in range(ring.steps):
        coming = _next_shard(ring, shard, step)
        for meeting in ring.meetings(step, q.device):
            _add_piece(totals, ring, meeting, (q, shard[0], shard[1]), rows)
        shard = [] if coming is None else coming.wait()
        if step < last:
            _pass_on(ring, totals, (k, v), step + 1, 1)
    if last:
        # From where a shard's journey ended its gradients go home at once.
        _pass_on(ring, totals, (k, v), 0, -last)
    return totals[0].to(q.dtype), totals[1].to(k.dtype), totals[2].to(v.dtype)


def _next_shard(ring: Ring, shard: list[Tensor], step: int) -> Shift | None:
    """The journey of the next keys and values to this rank, started; None after the last."""
    if step + 1 == ring.steps:
        return None
    return ring.ranks.shift(shard, [ring.like(x, step + 1) for x in shard], 1)


def _add_piece(
    totals: list[Tensor],
    ring: Ring,
    meeting: Meeting,
    tensors: tuple[Tensor, Tensor, Tensor],
    rows: QueryRows,
) -> None:
    """Add what the keys of one meeting give to the gradients of q, k and v."""
    parts = _piece_backward(ring, meeting, tensors, rows)
    for total, at, part in zip(totals, (meeting.q, meeting.k, meeting.k), parts, strict=True):
        _add(total, at, part)


def _pass_on(
    ring: Ring, totals: list[Tensor], own: tuple[Tensor, Tensor], step: int, by: int
) -> None:
    """Send the gradients at keys and values ``by`` ranks on; those of the shard of ``step`` come.

    One after the other, for a rank holds most at this moment.
    """
    for index, x in enumerate(own, 1):
        like = ring.like(x, step, torch.float32)
        totals[index] = ring.ranks.shift([totals[index]], [like], by).wait()[0]


def _piece_backward(
    ring: Ring, meeting: Meeting, tensors: tuple[Tensor, Tensor, Tensor], rows: QueryRows
) -> list[Tensor]:
    """What the keys of one meeting give to the gradients of q, k and v, by whole rows' lse."""
    inputs, request = ring.call(meeting, *tensors)
    return attention_backward(inputs, request, _taken(rows, meeting.q), ("q", "k", "v"))


def _taken(rows: QueryRows, at: Rows) -> QueryRows:
    """Some of this rank's rows."""
    return QueryRows(
        _take(rows.o, at).contiguous(),
        _take(rows.lse, at, -1).contiguous(),
        _take(rows.grad_o, at).contiguous(),
        None if rows.grad_lse is None else _take(rows.grad_lse, at, -1).contiguous(),
    )


def _merge(total: tuple[Tensor, Tensor], rows: Rows, part: tuple[Tensor | None, Tensor]) -> None:
    """Take the attention to further keys into o and lse; a sink is a part without values."""
    (o, lse), (part_o, part_lse) = total, part
    old = _take(lse, rows, -1)
    merged, weights = join((old, part_lse))
    weight, part_weight = (x.transpose(-1, -2)[..., None] for x in weights)
    changed = _take(o, rows).mul_(weight)  # in place, but for a copy of scattered rows
    if part_o is not None:
        changed.addcmul_(part_o.float(), part_weight)
    if isinstance(rows, Tensor):
        o.index_copy_(_ROWS, rows, changed)
        lse.index_copy_(-1, rows, merged)
    else:
        old.copy_(merged)


def _take(x: Tensor, rows: Rows, dim: int = _ROWS) -> Tensor:
    if isinstance(rows, Tensor):
        return x.index_select(dim, rows)
    return x.narrow(dim, rows[0], rows[1] - rows[0])


def _add(x: Tensor, rows: Rows, part: Tensor) -> None:
    if isinstance(rows, Tensor):
        x.index_copy_(_ROWS, rows, x.index_select(_ROWS, rows).add_(part))
    else:
        _take(x, rows).add_(part)
