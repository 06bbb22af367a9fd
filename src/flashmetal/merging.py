"""Attention over some keys joined with attention over others, by their log-sum-exps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor


def join(lses: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """The natural log-sum-exp over all parts' keys, and what each part's output is weighted by.

    The parts broadcast. A row that sees a key in no part has lse -inf and weights of 0.
    """
    lse = reduce(torch.logaddexp, lses)
    finite = lse.masked_fill(lse == -torch.inf, 0.0)  # -inf minus -inf would be nan
    return lse, [(x - finite).exp() for x in lses]


def with_sinks(o: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """o (..., Hq, rows, Dv), scaled in place, and lse (..., Hq, rows) with the sinks (Hq,) in both.

    A sink is a part that has no value.
    """
    lse, (share, _) = join((lse, sinks[:, None].to(lse.dtype)))
    return o.mul_(share[..., None]), lse
