"""What the backward of an engine is given, and what it gives."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class QueryRows(NamedTuple):
    """What a forward left of each query row, and what arrives there.

    o and grad_o are (B, Sq, Hq, Dv) or (total_q, Hq, Dv); lse and grad_lse float32, (B, Hq, Sq) or
    (Hq, total_q), natural logarithms. grad_lse is None where lse has no gradient.
    """

    o: Tensor
    lse: Tensor
    grad_o: Tensor
    grad_lse: Tensor | None = None

    def delta(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """rowsum(o * grad_o) - grad_lse in ``dtype``, the shape of lse (FlashAttention-2's D)."""
        delta = (self.o.to(dtype) * self.grad_o.to(dtype)).sum(-1).transpose(-2, -1)
        return delta if self.grad_lse is None else delta - self.grad_lse


class Gradients(NamedTuple):
    """The gradients of a call's differentiable inputs, by their names in ``AttentionInputs``.

    None where not wanted. All are contiguous; those of q, k, v and bias have their input's shape
    and dtype (a broadcast bias's is summed over what it is broadcast to), the others are float32.
    """

    q: Tensor | None = None
    k: Tensor | None = None
    v: Tensor | None = None
    bias: Tensor | None = None
    alibi_slopes: Tensor | None = None
    sinks: Tensor | None = None


def sink_gradient(sinks: Tensor, lse: Tensor, delta: Tensor) -> Tensor:
    """(Hq,): -sum over a head's rows of exp(sink - lse) * delta, for lse and delta of all rows."""
    weight = (sinks[:, None].to(lse.dtype) - lse).exp()
    # A row that sees nothing at all, not even a finite sink, has lse -inf.
    rows = -weight.masked_fill(lse == -torch.inf, 0.0) * delta
    return rows.sum(-1) if rows.ndim == 2 else rows.sum((0, 2))
