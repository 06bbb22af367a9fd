"""What the engines in torch operations share: the sequences of a call and the visible band."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..problem import AttentionInputs, AttentionProblem
from .key_value import CachedKeys


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
    seqlen_k: int
    cache: CachedKeys | None = None  # where the keys are, if not in k and v as they are
    entry: int = 0  # the first of the N batch entries

    def clear_rows(self, sinks: Tensor | None) -> tuple[int, int]:
        """Write the rows that see no key, and return the others [first, end).

        Without a key out is 0, and lse that of the sink alone: -inf where there is none.
        """
        seqlen_q = self.q.shape[1]
        first, end = self.band.rows(seqlen_q, self.seqlen_k)
        for rows in (slice(0, first), slice(end, seqlen_q)):
            if rows.start < rows.stop:
                self.clear(rows, sinks)
        return first, end

    def clear(self, rows: slice, sinks: Tensor | None) -> None:
        """Write rows that see no key."""
        self.out[:, rows].zero_()
        if sinks is None:
            self.lse[..., rows].fill_(-torch.inf)
        else:
            self.lse[..., rows] = sinks[:, None]


def compute_dtype(problem: AttentionProblem) -> torch.dtype:
    """What scores and sums are held in."""
    return torch.float64 if problem.dtype == torch.float64 else torch.float32


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
    if problem.layout == "dense" and not (
        problem.seqused_k or problem.leftpad_k or _cached(problem)
    ):
        for b in range(0, problem.batch, batch_step):
            entries = slice(b, b + batch_step)
            rows = inputs.q[entries], out[entries], lse[entries]
            yield _sequence(problem, inputs, entries, rows, _Keys(0, problem.seqlen_k))
        return
    starts_q = None if inputs.cu_seqlens_q is None else _integers(inputs.cu_seqlens_q)
    for b, keys in enumerate(_keys(problem, inputs)):
        entry = slice(b, b + 1)
        if starts_q is None:
            rows = inputs.q[entry], out[entry], lse[entry]
        else:
            own = slice(starts_q[b], starts_q[b + 1])
            rows = inputs.q[None, own], out[None, own], lse[None, :, own]
        yield _sequence(problem, inputs, entry, rows, keys)


class _Keys(NamedTuple):
    """The rows [first, end) of a sequence's keys, in k from ``start`` on or in ``pages``."""

    first: int
    end: int
    start: int = 0
    pages: list[int] | None = None


def _keys(problem: AttentionProblem, inputs: AttentionInputs) -> Iterator[_Keys]:
    """The keys of each batch entry."""
    ends = [problem.seqlen_k] * problem.batch
    starts = [0] * problem.batch
    if inputs.cu_seqlens_k is not None:
        starts = _integers(inputs.cu_seqlens_k)
        ends = [end - start for start, end in pairwise(starts)]
    if inputs.seqused_k is not None:
        ends = _integers(inputs.seqused_k)
    firsts = [0] * problem.batch if inputs.leftpad_k is None else _integers(inputs.leftpad_k)
    table = inputs.block_table
    rows = None if table is None else cast("list[list[int]]", table.tolist())
    for b in range(problem.batch):
        pages = None if rows is None else rows[b]
        yield _Keys(min(firsts[b], ends[b]), ends[b], starts[b], pages)


def _sequence(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    entries: slice,
    rows: tuple[Tensor, Tensor, Tensor],
    keys: _Keys,
) -> Sequence:
    """The sequence of these batch entries, ``rows`` their (q, out, lse)."""
    q, out, lse = rows
    seqlen_q, seqlen_k = q.shape[1], keys.end - keys.first
    k, v, cache = inputs.k, inputs.v, None
    if _cached(problem):
        cache = _cached_keys(problem, inputs, entries, keys)
        plain = cache.plain(seqlen_k)
        if plain is not None:
            (k, v), cache = plain, None
    elif problem.layout == "dense":
        k, v = (x[entries, keys.first : keys.end] for x in (k, v))
    else:
        k, v = (x[None, keys.start + keys.first : keys.start + keys.end] for x in (k, v))
    bias = inputs.bias
    if bias is not None:
        bias = bias[..., :seqlen_q, keys.first : keys.end]
        bias = bias if bias.shape[0] == 1 else bias[entries]
    slopes = inputs.alibi_slopes
    if slopes is not None:
        slopes = slopes[None] if slopes.ndim == 1 else slopes[entries]
    band = Band(seqlen_k - seqlen_q, problem.window_left, problem.window_right)
    return Sequence(q, k, v, bias, slopes, out, lse, band, seqlen_k, cache, entries.start)


def _cached(problem: AttentionProblem) -> bool:
    """Whether the keys are not rows of k to be multiplied as they are."""
    return bool(problem.page_size) or (problem.k_format, problem.v_format) != ("dense", "dense")


def _cached_keys(
    problem: AttentionProblem, inputs: AttentionInputs, entries: slice, keys: _Keys
) -> CachedKeys:
    caches = inputs.k, inputs.v, inputs.k_scale, inputs.v_scale
    pages = keys.pages
    if pages is None:
        # Sequences outside of pages lie in a single long one.
        pages, own = [0], entries if problem.layout == "dense" else None
        caches = [None if x is None else x[own] for x in caches]
    k, v, k_scale, v_scale = caches
    assert k is not None
    assert v is not None
    skipped = keys.start + keys.first
    return CachedKeys(k, v, k_scale, v_scale, pages, skipped, compute_dtype(problem))


def _integers(x: Tensor) -> list[int]:
    return cast("list[int]", x.tolist())
