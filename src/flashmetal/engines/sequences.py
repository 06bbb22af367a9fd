"""What the engines in torch operations share: the sequences of a call and the visible band."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor

from ..problem import AttentionProblem
from ..request import AttentionInputs
from ..settled import once
from .key_value import CachedKeys, Stored
from .places import CachedSequence, Places

# A group of sequences may have so many columns that are empty, however few its keys.
_FREE_COLUMNS = 4096


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
    slopes (N|1, Hq) or None, out (N, Sq, Hq, Dv), lse (N, Hq, Sq). Those in a ``cache`` may differ
    in length: ``seqlen_k`` is the longest, and all end together.
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


def is_positive(scale: float, dtype: torch.dtype) -> bool:
    """Whether a scale is above 0 as a dtype has it, also where numbers below its least normal one
    count as 0."""
    return scale >= torch.finfo(dtype).tiny


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
    problem: AttentionProblem,
    inputs: AttentionInputs,
    out: Tensor,
    lse: Tensor,
    batch_step: int,
    most_rows: int = 0,
) -> Iterator[Sequence]:
    """The call, ``batch_step`` batch entries at a time where they have one length, else singly.

    Neighbouring entries of one length of at most ``most_rows`` queries go together whatever their
    lengths of keys, as the decodes of many requests. Lengths that live on a device are read once,
    which waits for it.
    """
    if problem.layout == "dense" and not (
        problem.seqused_k or problem.leftpad_k or _cached(problem)
    ):
        for b in range(0, problem.batch, batch_step):
            entries = slice(b, b + batch_step)
            rows = inputs.q[entries], out[entries], lse[entries]
            k, v = (x[entries] for x in (inputs.k, inputs.v))
            yield _sequence(problem, inputs, entries, rows, _Keys(k, v, 0, problem.seqlen_k))
        return
    stored = _Store.of(problem, inputs)
    for group in _groups(problem, inputs, stored, most_rows):
        entries = slice(group.first, group.end)
        if inputs.cu_seqlens_q is None:
            rows = inputs.q[entries], out[entries], lse[entries]
        else:
            form = group.end - group.first, group.seqlen_q
            own = slice(group.start_q, group.start_q + form[0] * form[1])
            rows = (
                inputs.q[own].view(*form, *inputs.q.shape[1:]),
                out[own].view(*form, *out.shape[1:]),
                lse[:, own].view(lse.shape[0], *form).transpose(0, 1),
            )
        yield _sequence(problem, inputs, entries, rows, stored.keys(group.places))


class _Group(NamedTuple):
    """Batch entries [first, end) of ``seqlen_q`` rows each, the first of them ``start_q``."""

    first: int
    end: int
    start_q: int
    seqlen_q: int
    places: Places


def _groups(
    problem: AttentionProblem, inputs: AttentionInputs, stored: _Store, most_rows: int
) -> list[_Group]:
    """The call's entries, neighbours of at most ``most_rows`` queries together."""
    if problem.dropout_p or inputs.bias is not None:
        most_rows = 0  # a column of theirs is not the same key in every sequence

    def make() -> list[_Group]:
        starts = [problem.seqlen_q * b for b in range(problem.batch + 1)]
        if inputs.cu_seqlens_q is not None:
            starts = _integers(inputs.cu_seqlens_q)
        counts = [end - start for start, end in pairwise(starts)]
        found, device = _cached_sequences(problem, inputs), inputs.k.device
        return [
            _Group(
                first,
                end,
                starts[first],
                counts[first],
                Places(found[first:end], stored.page_size, stored.joined, device),
            )
            for first, end in _spans(counts, [x.length for x in found], most_rows)
        ]

    name = _Group, problem, most_rows, stored.page_size, stored.joined
    return once(inputs.lengths, name, make)


def _spans(counts: list[int], lengths: list[int], most_rows: int) -> Iterator[tuple[int, int]]:
    """Entries [first, end) that go together, so that at most half their columns are empty."""
    first = 0
    while first < len(counts):
        end, columns, total = first + 1, lengths[first], lengths[first]
        while end < len(counts) and counts[end] == counts[first] <= most_rows:
            columns, total = max(columns, lengths[end]), total + lengths[end]
            if not fits_together(end + 1 - first, columns, total):
                break
            end += 1
        yield first, end
        first = end


def fits_together(count: int, columns: int, keys: int) -> bool:
    """Whether so many sequences of ``keys`` keys in all may be padded to so many columns each."""
    return count * columns <= 2 * keys + _FREE_COLUMNS


class _Keys(NamedTuple):
    """The keys of a sequence from position ``first`` on: k and v (N, keys, Hk, ...), or a cache."""

    k: Tensor
    v: Tensor
    first: int
    length: int
    cache: CachedKeys | None = None


class _Store(NamedTuple):
    """All the keys of a call as those of a cache: (pages, rows of a page, Hk, ...)."""

    k: Stored
    v: Stored
    page_size: int
    joined: bool
    head_dim_v: int
    dtype: torch.dtype

    @classmethod
    def of(cls, problem: AttentionProblem, inputs: AttentionInputs) -> _Store:
        """Outside of pages a batch entry's rows are a page, and all packed rows are one."""
        k, v = Stored(inputs.k, inputs.k_scale), Stored(inputs.v, inputs.v_scale)
        if problem.layout == "varlen" and not problem.page_size:
            k, v = k.as_page(), v.as_page()
        joined_k, joined_v, size = k.joined(), v.joined(), k.codes.shape[1]
        rest = problem.head_dim_v, compute_dtype(problem)
        if joined_k is None or joined_v is None:
            return cls(k, v, size, False, *rest)
        return cls(joined_k, joined_v, size, True, *rest)

    def keys(self, places: Places) -> _Keys:
        """The keys of these sequences, as they lie where that is one sequence in one place."""
        cache = CachedKeys(self.k, self.v, places, self.head_dim_v, self.dtype)
        plain = cache.plain() if len(places.sequences) == 1 else None
        first = places.sequences[0].first
        if plain is not None:
            return _Keys(*plain, first, places.width)
        return _Keys(self.k.codes, self.v.codes, first, places.width, cache)


def key_bounds(problem: AttentionProblem, inputs: AttentionInputs) -> tuple[list[int], list[int]]:
    """The first key of each entry that is no padding, and the one behind its last, in its row."""
    firsts, ends = [0] * problem.batch, [problem.seqlen_k] * problem.batch
    if inputs.leftpad_k is not None:
        firsts = _integers(inputs.leftpad_k)
    if inputs.seqused_k is not None:
        ends = _integers(inputs.seqused_k)
    return firsts, ends


def _cached_sequences(problem: AttentionProblem, inputs: AttentionInputs) -> list[CachedSequence]:
    """Where the keys of each batch entry lie, see :class:`_Store`."""
    starts = [0] * problem.batch
    firsts, ends = key_bounds(problem, inputs)
    if inputs.cu_seqlens_k is not None:
        starts = _integers(inputs.cu_seqlens_k)
        if inputs.seqused_k is None:
            ends = [end - start for start, end in pairwise(starts)]
    if inputs.block_table is not None:
        tables = cast("list[list[int]]", inputs.block_table.tolist())
    elif problem.layout == "dense":
        tables = [[b] for b in range(problem.batch)]
    else:
        tables = [[0]] * problem.batch
    found: list[CachedSequence] = []
    for table, start, first, end in zip(tables, starts, firsts, ends, strict=False):
        first = min(first, end)
        found.append(CachedSequence(table, start + first, end - first, first))
    return found


def _sequence(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    entries: slice,
    rows: tuple[Tensor, Tensor, Tensor],
    keys: _Keys,
) -> Sequence:
    """The sequence of these batch entries, ``rows`` their (q, out, lse)."""
    q, out, lse = rows
    seqlen_q, seqlen_k = q.shape[1], keys.length
    bias = inputs.bias
    if bias is not None:
        bias = bias[..., :seqlen_q, keys.first : keys.first + seqlen_k]
        bias = bias if bias.shape[0] == 1 else bias[entries]
    slopes = inputs.alibi_slopes
    if slopes is not None:
        slopes = slopes[None] if slopes.ndim == 1 else slopes[entries]
    band = Band(seqlen_k - seqlen_q, problem.window_left, problem.window_right)
    at = entries.start
    return Sequence(q, keys.k, keys.v, bias, slopes, out, lse, band, seqlen_k, keys.cache, at)


def _cached(problem: AttentionProblem) -> bool:
    """Whether the keys are not rows of k to be multiplied as they are."""
    return bool(problem.page_size) or (problem.k_format, problem.v_format) != ("dense", "dense")


def _integers(x: Tensor) -> list[int]:
    return cast("list[int]", x.tolist())
