"""Whether what a contestant computes is right: rows of its result against float64.

A whole call is too large for the oracle. A few rows of one group of heads are not, and they are a
call of their own: keys past the last that its window lets the rows see are cut off, so that its
last row stands at the key it stood at.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...problem import AttentionProblem
from ...reference import attention_reference
from ...request import AttentionInputs
from ...testing import error_budget

_ROWS = 32  # in each of three places of a sequence
# Models' own eager code rounds scores to half types, and terms of gradients cancel: what is wrong
# is wrong by far more.
SLACK_OF_OTHERS = 8


class Verdict(NamedTuple):
    """The largest error of o among the rows, what was allowed, and whether all is right."""

    error: float
    allowed: float
    right: bool

    def __str__(self) -> str:
        word = "right" if self.right else "WRONG"
        return f"{word}: error {self.error:.1e}, allowed {self.allowed:.1e}"


class Expected(NamedTuple):
    """Places in o, or in lse, with their float64 values, and the error allowed there."""

    places: list[tuple[Any, ...]]
    values: list[Tensor]
    budget: float

    def error(self, found: Tensor) -> float:
        """The largest; infinite for NaN, or for another infinity."""
        worst = 0.0
        for place, value in zip(self.places, self.values, strict=True):
            part = found[place].detach().cpu().double()
            error = torch.where(part == value, 0.0, (part - value).abs()).nan_to_num(nan=math.inf)
            worst = max(worst, float(error.max()))
        return worst


class Oracle:
    """Rows of what a call must give."""

    def __init__(self, problem: AttentionProblem, inputs: AttentionInputs) -> None:
        parts = [_part(problem, inputs, rows) for rows in _rows(problem, inputs)]
        exact = [attention_reference(*part[:2], compute_dtype=torch.float64) for part in parts]
        eager = [attention_reference(*part[:2]) for part in parts]
        self.o, self.lse = (
            Expected(
                [part.places[index] for part in parts],
                [result[index][0] for result in exact],
                _budget([x[index] for x in eager], [x[index] for x in exact]),
            )
            for index in range(2)
        )

    def judge(self, o: Tensor, lse: Tensor | None) -> Verdict:
        """Of results (o, lse) in the layout of q; whoever gives no lse is not ours."""
        allowed = self.o.budget * (1 if lse is not None else SLACK_OF_OTHERS)
        error = self.o.error(o)
        right = error <= allowed
        if lse is not None:
            right = right and self.lse.error(lse) <= self.lse.budget
        return Verdict(error, allowed, right)


def judge_gradients(
    problem: AttentionProblem, inputs: AttentionInputs, grad_o: Tensor, found: Sequence[Tensor]
) -> Verdict:
    """Of the gradients of q, k and v of a small call, all of them: the worst of the three."""
    given = inputs._make(None if x is None else x.detach().cpu() for x in inputs)
    exact, eager = (
        _reference_gradients(problem, given, grad_o.cpu(), dtype) for dtype in (torch.float64, None)
    )
    verdicts: list[Verdict] = []
    for actual, right, rough in zip(found, exact, eager, strict=True):
        allowed = SLACK_OF_OTHERS * error_budget(rough, right)
        error = Expected([()], [right], allowed).error(actual)
        verdicts.append(Verdict(error, allowed, error <= allowed))
    return max(verdicts, key=lambda x: x.error / max(x.allowed, 1e-300))


def _reference_gradients(
    problem: AttentionProblem, inputs: AttentionInputs, grad_o: Tensor, dtype: torch.dtype | None
) -> tuple[Tensor, ...]:
    """By autograd through the reference, in float64 or as an eager model has them."""
    leaves = [x.to(dtype or x.dtype).requires_grad_() for x in inputs[:3]]
    with torch.enable_grad():
        o, _ = attention_reference(
            problem, inputs._replace(q=leaves[0], k=leaves[1], v=leaves[2]), dtype
        )
    return torch.autograd.grad(o, leaves, grad_o.to(o.dtype))


class _Part(NamedTuple):
    problem: AttentionProblem
    inputs: AttentionInputs
    places: tuple[tuple[Any, ...], tuple[Any, ...]]  # in o and in lse


def _budget(eager: list[Tensor], exact: list[Tensor]) -> float:
    whole = [torch.cat([x.flatten() for x in results]) for results in (eager, exact)]
    return error_budget(whole[0], whole[1])


def _rows(problem: AttentionProblem, inputs: AttentionInputs) -> list[tuple[int, int, int]]:
    """(entry, first row, end) of some rows: at the end of a sequence, and elsewhere if they can be.

    Rows elsewhere are a call of their own if cutting the keys puts the last row at the last key,
    or if no position counts.
    """
    length = problem.seqlen_q
    entry = problem.batch - 1
    if inputs.cu_seqlens_q is not None:
        lengths = inputs.cu_seqlens_q.diff()
        entry, length = int(lengths.argmax()), int(lengths.max())
    causal = problem.window_right == 0
    free = problem.window_left < 0 and problem.window_right < 0 and problem.alibi is None
    starts = {max(0, length - _ROWS)}
    if causal or free:
        starts |= {0, max(0, length // 2 - _ROWS)}
    return [(entry, start, min(start + _ROWS, length)) for start in sorted(starts)]


def _part(problem: AttentionProblem, inputs: AttentionInputs, rows: tuple[int, int, int]) -> _Part:
    """Rows [first, end) of one entry, of the last group of heads, as a dense call on the CPU."""
    entry, first, end = rows
    group = problem.heads_q // problem.heads_k
    heads, head_k = slice(problem.heads_q - group, None), slice(problem.heads_k - 1, None)
    starts = inputs.cu_seqlens_q, inputs.cu_seqlens_k, inputs.cu_seqlens_k
    q, k, v = (_entry(x, at, entry) for x, at in zip(inputs[:3], starts, strict=True))
    keys = k.shape[0]
    if problem.window_right == 0:
        keys = min(keys, max(0, end + k.shape[0] - q.shape[0]))
    bias, slopes, sinks = inputs.bias, inputs.alibi_slopes, inputs.sinks
    if bias is not None:
        sizes = problem.batch, problem.heads_q, problem.seqlen_q, problem.seqlen_k
        whole = bias.expand(sizes)
        bias = whole[entry : entry + 1, heads, first:end, :keys].cpu()
    if slopes is not None:
        slopes = (slopes if slopes.ndim == 1 else slopes[entry])[heads].cpu()
    given = AttentionInputs(
        q[None, first:end, heads].cpu(),
        k[None, :keys, head_k].cpu(),
        v[None, :keys, head_k].cpu(),
        bias,
        slopes,
        None if sinks is None else sinks[heads].cpu(),
    )
    part = problem._replace(
        layout="dense",
        batch=1,
        seqlen_q=end - first,
        seqlen_k=keys,
        heads_q=group,
        heads_k=1,
        device="cpu",
    )
    at = slice(first, end)
    if inputs.cu_seqlens_q is None:
        return _Part(part, given, ((entry, at, heads), (entry, heads, at)))
    start = int(inputs.cu_seqlens_q[entry])
    at = slice(start + first, start + end)
    return _Part(part, given, ((at, heads), (heads, at)))


def _entry(x: Tensor, starts: Tensor | None, entry: int) -> Tensor:
    """One sequence of a batch, (S, H, D)."""
    if starts is None:
        return x[entry]
    return x[int(starts[entry]) : int(starts[entry + 1])]
