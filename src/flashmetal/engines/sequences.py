"""What the engines in torch operations share: the sequences of a call and the visible band."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..problem import AttentionInputs, AttentionProblem


class Band(NamedTuple):
    """The keys each query sees: row i sees keys i + diagonal - left to i + diagonal + right.

    ``diagonal`` is Sk - Sq, so the band is aligned bottom-right; -1 is unbounded on that side.
    """

    diagonal: int
    left: int
    right: int

    def rows(self, seqlen_q: int, seqlen_k: int) -> tuple[int, int]:
        """The rows [first, end) that see at least one key."""
        first, end = 0, seqlen_q if seqlen_k else 0
        if self.right >= 0:
            first = max(first, -self.diagonal - self.right)
        if self.left >= 0:
            end = min(end, seqlen_k - self.diagonal + self.left)
        return (first, end) if first < end else (0, 0)

    def keys(self, row: int, row_end: int, seqlen_k: int) -> tuple[int, int]:
        """The keys [first, end) that some row of [row, row_end) sees."""
        first, end = 0, seqlen_k
        if self.left >= 0:
            first = max(first, row + self.diagonal - self.left)
        if self.right >= 0:
            end = min(end, row_end + self.diagonal + self.right)
        return first, end

    def is_full(self, row: int, row_end: int, key: int, key_end: int) -> bool:
        """Whether every row of [row, row_end) sees every key of [key, key_end)."""
        return (self.right < 0 or key_end - 1 <= row + self.diagonal + self.right) and (
            self.left < 0 or key >= row_end - 1 + self.diagonal - self.left
        )

    def hide(self, scores: Tensor, row: int, key: int) -> None:
        """Add -inf to the scores (heads, rows, keys) outside the band, touching only its corners.

        ``row`` and ``key`` are the positions of scores[:, 0, 0].
        """
        rows, keys = scores.shape[1:]
        if self.right >= 0:
            # Columns from here on are hidden from the first row.
            start = max(0, row + self.diagonal + self.right + 1 - key)
            if start < keys:
                corner = scores.new_full((rows, keys - start), -torch.inf)
                offset = row + self.diagonal + self.right - key - start
                scores[..., start:] += corner.triu_(offset + 1)
        if self.left >= 0:
            # Columns up to here are hidden from the last row.
            stop = min(keys, row + rows - 1 + self.diagonal - self.left - key)
            if stop > 0:
                corner = scores.new_full((rows, stop), -torch.inf)
                scores[..., :stop] += corner.tril_(row + self.diagonal - self.left - key - 1)


class Sequence(NamedTuple):
    """N batch entries of one length: views of the inputs, and of the outputs to write.

    q (N, Sq, Hq, D), k (N, Sk, Hk, D), v (N, Sk, Hk, Dv), bias (N|1, Hq|1, Sq|1, Sk) or None,
    slopes (N|1, Hq) or None, out (N, Sq, Hq, Dv), lse (N, Hq, Sq).
    """

    q: Tensor
    k: Tensor
    v: Tensor
    bias: Tensor | None
    slopes: Tensor | None
    out: Tensor
    lse: Tensor
    band: Band

    def clear_rows(self, sinks: Tensor | None) -> tuple[int, int]:
        """Write the rows that see no key, and return the others [first, end).

        Without a key out is 0, and lse that of the sink alone: -inf where there is none.
        """
        seqlen_q = self.q.shape[1]
        first, end = self.band.rows(seqlen_q, self.k.shape[1])
        for rows in (slice(0, first), slice(end, seqlen_q)):
            self.out[:, rows].zero_()
            if sinks is None:
                self.lse[..., rows].fill_(-torch.inf)
            else:
                self.lse[..., rows] = sinks[:, None]
        return first, end


def new_outputs(
    problem: AttentionProblem, inputs: AttentionInputs, out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(out, lse) to be written: ``out`` itself where it is given."""
    shape = (*inputs.q.shape[:-1], problem.head_dim_v)
    if out is None:
        out = inputs.q.new_empty(shape)
    rows = (problem.batch, problem.heads_q, problem.seqlen_q)
    if problem.layout == "varlen":
        rows = (problem.heads_q, inputs.q.shape[0])
    return out, inputs.q.new_empty(rows, dtype=torch.float32)


def sequences(
    problem: AttentionProblem, inputs: AttentionInputs, out: Tensor, lse: Tensor, batch_step: int
) -> Iterator[Sequence]:
    """The call, ``batch_step`` batch entries at a time where they have one length, else singly.

    Lengths that live on a device are read once, which waits for it.
    """
    used = None if inputs.seqused_k is None else _integers(inputs.seqused_k)
    if problem.layout == "varlen":
        yield from _packed(problem, inputs, out, lse, used)
        return
    step = batch_step if used is None else 1
    for b in range(0, problem.batch, step):
        entries = slice(b, b + step)
        seqlen_k = problem.seqlen_k if used is None else used[b]
        yield Sequence(
            inputs.q[entries],
            inputs.k[entries, :seqlen_k],
            inputs.v[entries, :seqlen_k],
            _bias(inputs, entries, problem.seqlen_q, seqlen_k),
            _slopes(inputs, entries),
            out[entries],
            lse[entries],
            Band(seqlen_k - problem.seqlen_q, problem.window_left, problem.window_right),
        )


def _packed(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    out: Tensor,
    lse: Tensor,
    used: list[int] | None,
) -> Iterator[Sequence]:
    assert inputs.cu_seqlens_q is not None
    assert inputs.cu_seqlens_k is not None
    starts_q = _integers(inputs.cu_seqlens_q)
    starts_k = _integers(inputs.cu_seqlens_k)
    for b in range(problem.batch):
        rows = slice(starts_q[b], starts_q[b + 1])
        seqlen_q = rows.stop - rows.start
        seqlen_k = starts_k[b + 1] - starts_k[b] if used is None else used[b]
        keys = slice(starts_k[b], starts_k[b] + seqlen_k)
        entry = slice(b, b + 1)
        yield Sequence(
            inputs.q[None, rows],
            inputs.k[None, keys],
            inputs.v[None, keys],
            _bias(inputs, entry, seqlen_q, seqlen_k),
            _slopes(inputs, entry),
            out[None, rows],
            lse[None, :, rows],
            Band(seqlen_k - seqlen_q, problem.window_left, problem.window_right),
        )


def _integers(x: Tensor) -> list[int]:
    return cast("list[int]", x.tolist())


def _bias(inputs: AttentionInputs, entries: slice, seqlen_q: int, seqlen_k: int) -> Tensor | None:
    bias = inputs.bias
    if bias is None:
        return None
    bias = bias[..., :seqlen_q, :seqlen_k]
    return bias if bias.shape[0] == 1 else bias[entries]


def _slopes(inputs: AttentionInputs, entries: slice) -> Tensor | None:
    slopes = inputs.alibi_slopes
    if slopes is None:
        return None
    return slopes[None] if slopes.ndim == 1 else slopes[entries]
