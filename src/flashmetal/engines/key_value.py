"""How the keys and values of sequences, wherever they lie, become panels to multiply with."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.formats import dequantise

# Of keys that are too many to copy, so many neighbours are read in place.
_LEAST_RUN = 8
# Elements copied at a time; on a CPU (True) they stay in its cache.
_GATHERED = {True: 1 << 20, False: 1 << 22}


class Panel(NamedTuple):
    """Some keys of N sequences from ``first`` on: k (N * Hk, keys, D), v (N * Hk, keys, Dv).

    ``absent`` (N, keys) says where a sequence has no key, None where each has them all.
    """

    first: int
    k: Tensor
    v: Tensor
    absent: Tensor | None = None

    def scores(self, q: Tensor, scratch: Tensor) -> Tensor:
        """The products (N * Hk, rows, keys) of q (N * Hk, rows, D), written into ``scratch``.

        Where a sequence has no key they may be anything.
        """
        return product(q, self.k, scratch)

    def values(self, p: Tensor, o: Tensor | None) -> Tensor:
        """p (N * Hk, rows, keys) times the values, added to ``o`` in place where it is given."""
        return torch.bmm(p, self.v) if o is None else o.baddbmm_(p, self.v)


class PlainKeys(NamedTuple):
    """Keys k (N * Hk, Sk, D) and values v (N * Hk, Sk, Dv), multiplied in ``dtype``."""

    k: Tensor
    v: Tensor
    dtype: torch.dtype

    def panels(self, first: int, end: int, most: int) -> Iterator[Panel]:
        """The keys [first, end) in panels of one size, at most ``most`` keys."""
        for start, stop in _even(first, end, most):
            k, v = (x[:, start:stop].to(self.dtype) for x in (self.k, self.v))
            yield Panel(start, k, v)


class CachedSequence(NamedTuple):
    """Where the keys of one sequence lie: rows of its pages in order, -1 for none.

    The first ``skipped`` rows of the pages are not its own, or hidden, the next ``length`` are
    the keys from position ``first`` on.
    """

    pages: list[int]
    skipped: int
    length: int
    first: int


class Run(NamedTuple):
    """Neighbouring keys of sequence ``entry``: columns of a panel, rows of a page (-1 is none)."""

    entry: int
    column: int
    page: int
    row: int
    keys: int


class Stored(NamedTuple):
    """Keys or values, codes or not, (pages, rows of a page, Hk, ...), and their scale."""

    codes: Tensor
    scale: Tensor | None

    @property
    def row_elements(self) -> int:
        """How many values a row of all heads has; two codes of 4 bits share a byte."""
        stored = math.prod(self.codes.shape[2:])
        return 2 * stored if self.codes.dtype == torch.uint8 else stored

    def joined(self) -> Stored | None:
        """All pages as a single one, or None where they do not lie side by side."""
        for x in self:
            if x is not None and x.shape[0] > 1 and x.stride(0) != x.shape[1] * x.stride(1):
                return None
        scale = None if self.scale is None else self.scale.flatten(0, 1)
        return Stored(self.codes.flatten(0, 1), scale).as_page()

    def as_page(self) -> Stored:
        """Rows without pages, (rows, Hk, ...), as those of a single page."""
        return Stored(self.codes[None], None if self.scale is None else self.scale[None])

    def read(self, runs: list[Run], dtype: torch.dtype, most: int) -> Iterator[tuple[Run, Tensor]]:
        """Each run with its rows (Hk, keys, D) in ``dtype``.

        Long runs are read where they lie; short ones, and all that must be converted, are gathered
        with others, at most ``most`` rows at a time.
        """
        least = _LEAST_RUN if self.scale is None and self.codes.dtype == dtype else math.inf
        pages = self.codes.transpose(1, 2).unbind(0) if least < math.inf else ()
        gathered: list[Run] = []
        for run in runs:
            if run.keys >= least:
                yield run, pages[run.page].narrow(1, run.row, run.keys)
            else:
                gathered.append(run)
        gathered_at_once = _GATHERED[self.codes.is_cpu] // self.row_elements
        for chunk in _chunks(gathered, max(1, min(most, gathered_at_once))):
            rows = self.copied(chunk, dtype).transpose(0, 1)
            start = 0
            for run in chunk:
                yield run, rows.narrow(1, start, run.keys)
                start += run.keys

    def copied(self, runs: list[Run], dtype: torch.dtype) -> Tensor:
        """The rows (rows, Hk, D) of the runs one after the other, zeros for a run of no page."""
        pages, size = self.codes.shape[:2]
        numbers = array("q")  # of rows, counted through all pages
        empty: list[tuple[int, int]] = []
        for run in runs:
            if run.page < 0:
                empty.append((len(numbers), run.keys))
                numbers.extend(repeat(0, run.keys))
            else:
                first = run.page * size + run.row
                numbers.extend(range(first, first + run.keys))
        rows = torch.frombuffer(numbers, dtype=torch.int64).to(self.codes.device)
        if pages == 1:
            found = [None if x is None else x[0].index_select(0, rows) for x in self]
        else:
            page = rows // size
            found = [None if x is None else x[page, rows - page * size] for x in self]
        codes, scale = found
        assert codes is not None
        copied = dequantise(codes, scale, dtype)
        for start, count in empty:
            copied.narrow(0, start, count).zero_()
        return copied


class CachedKeys(NamedTuple):
    """N sequences in a cache, which all end at the last of as many columns as the longest has keys.

    So aligned, a band and the distances of ALiBi are the same for all of them. ``page_size`` is
    that of the sequences' pages, ``joined`` whether these are now rows of a single one. Products
    are of ``dtype``, those with the values ``head_dim_v`` wide.
    """

    k: Stored
    v: Stored
    sequences: list[CachedSequence]
    columns: int
    page_size: int
    joined: bool
    head_dim_v: int
    dtype: torch.dtype

    def panels(self, first: int, end: int, most: int) -> Iterator[Panel | CachedPanel]:
        """The columns [first, end) in panels of one size, at most ``most`` columns."""
        for start, stop in _even(first, end, most):
            panel = CachedPanel(start, stop - start, self._runs(start, stop), most, self)
            few = panel.gathered()
            if few is None:
                yield panel
            else:
                k, v = (x.transpose(1, 2).flatten(0, 1) for x in few)
                yield Panel(start, k, v, panel.absent)

    def whole(self) -> CachedPanel:
        """All columns as one panel."""
        return CachedPanel(0, self.columns, self._runs(0, self.columns), self.columns, self)

    def plain(self) -> tuple[Tensor, Tensor] | None:
        """k (1, keys, Hk, D) and v of a single sequence where they lie, if that is in one run."""
        runs = self._runs(0, self.columns) if self.k.scale is None and self.v.scale is None else []
        if len(runs) != 1 or runs[0].keys < self.columns:
            return None
        page, rows = runs[0].page, slice(runs[0].row, runs[0].row + runs[0].keys)
        return self.k.codes[None, page, rows], self.v.codes[None, page, rows]

    def _runs(self, first: int, end: int) -> list[Run]:
        """The keys in the columns [first, end), but those of missing pages."""
        runs: list[Run] = []
        size = self.page_size
        for entry, (pages, skipped, length, _) in enumerate(self.sequences):
            shift = self.columns - length - skipped  # from rows of the pages to columns
            row, last = max(first - shift, skipped), end - shift
            while row < last:
                index = row // size
                page, stop = pages[index], index + 1
                if page >= 0 and self.joined:
                    stop = _neighbours_end(pages, index, -(-last // size))
                row_end = min(stop * size, last)
                if page >= 0:
                    column, inside = row + shift - first, row - index * size
                    place = (0, page * size + inside) if self.joined else (page, inside)
                    runs.append(Run(entry, column, *place, row_end - row))
                row = row_end
        return runs


class CachedPanel(NamedTuple):
    """Columns of sequences in a cache, read where they lie; else as a :class:`Panel`."""

    first: int
    columns: int
    runs: list[Run]
    most: int  # keys to be gathered at a time
    keys: CachedKeys

    @property
    def absent(self) -> Tensor | None:
        """As of a :class:`Panel`."""
        shape = len(self.keys.sequences), self.columns
        if sum(run.keys for run in self.runs) == math.prod(shape):
            return None
        pieces = _filled(self.runs, self.columns, math.prod(shape))
        flags = bytearray().join(bytes([piece.page < 0]) * piece.keys for piece in pieces)
        absent = torch.frombuffer(flags, dtype=torch.bool).view(shape)
        return absent.to(self.keys.k.codes.device)

    def scores(self, q: Tensor, scratch: Tensor) -> Tensor:
        """As :meth:`Panel.scores`."""
        count, rows = len(self.keys.sequences), q.shape[1]
        shape = (count, q.shape[0] // count, rows, self.columns)
        s = scratch[: math.prod(shape)].view(shape)
        q_of, s_of = q.view(*shape[:3], -1).unbind(0), s.unbind(0)
        for run, k in self.keys.k.read(self.runs, self.keys.dtype, self.most):
            out = s_of[run.entry].narrow(2, run.column, run.keys)
            torch.bmm(q_of[run.entry], k.transpose(1, 2), out=out)
        return s.view(-1, rows, self.columns)

    def values(self, p: Tensor, o: Tensor | None) -> Tensor:
        """As :meth:`Panel.values`."""
        keys, count = self.keys, len(self.keys.sequences)
        if o is None:
            o = p.new_zeros(*p.shape[:2], keys.head_dim_v)
        p_of, o_of = (x.view(count, -1, *x.shape[1:]).unbind(0) for x in (p, o))
        for run, v in keys.v.read(self.runs, keys.dtype, self.most):
            o_of[run.entry].baddbmm_(p_of[run.entry].narrow(2, run.column, run.keys), v)
        return o

    def gathered(self) -> tuple[Tensor, Tensor] | None:
        """Copies k (N, columns, Hk, D) and v (N, columns, Hk, Dv), zeros where a key is absent.

        None where these are too many, lie in one place, are mostly absent, or are all absent of a
        sequence. One product beats many small ones, each of which wakes every thread.
        """
        keys, runs, shape = self.keys, self.runs, (len(self.keys.sequences), self.columns)
        rows, total = math.prod(shape), sum(run.keys for run in runs)
        widest = max(keys.k.row_elements, keys.v.row_elements)
        if (
            len(runs) == 1
            or len({run.entry for run in runs}) < shape[0]
            or rows > 2 * total
            or rows * widest > _GATHERED[keys.k.codes.is_cpu]
        ):
            return None
        pieces = list(_filled(runs, self.columns, rows))
        k, v = (x.copied(pieces, keys.dtype) for x in (keys.k, keys.v))
        return k.view(*shape, *k.shape[1:]), v.view(*shape, *v.shape[1:])


def _filled(runs: list[Run], columns: int, rows: int) -> Iterator[Run]:
    """The runs, and runs of no page where a sequence of so many columns has no key."""
    end = 0
    for run in runs:
        start = run.entry * columns + run.column
        if start > end:
            yield Run(0, 0, -1, 0, start - end)
        yield run
        end = start + run.keys
    if end < rows:
        yield Run(0, 0, -1, 0, rows - end)


def product(a: Tensor, b: Tensor, scratch: Tensor) -> Tensor:
    """a (N, rows, D) times b (N, keys, D) transposed, written at the start of ``scratch``."""
    shape = (*a.shape[:2], b.shape[1])
    out = scratch[: math.prod(shape)].view(shape)
    return torch.bmm(a, b.transpose(1, 2), out=out)


def _even(first: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """[first, end) in parts of one size: a short last one would cost as many launches as a full."""
    if first < end:
        size = -(-(end - first) // -(-(end - first) // most))
        for start in range(first, end, size):
            yield start, min(start + size, end)


def _neighbours_end(pages: list[int], index: int, end: int) -> int:
    """Up to where, at most ``end``, each of the pages from ``index`` on follows the one before."""
    last = pages[index] + end - 1 - index
    if pages[end - 1] == last and pages[index:end] == list(range(pages[index], last + 1)):
        return end
    index += 1
    while index < end and pages[index] == pages[index - 1] + 1:
        index += 1
    return index


def _chunks(runs: list[Run], most: int) -> Iterator[list[Run]]:
    """The runs in parts of at most ``most`` keys, cut where they are longer."""
    chunk: list[Run] = []
    room = most
    for run in runs:
        while run.keys:
            count = min(run.keys, room)
            chunk.append(run._replace(keys=count))
            entry, column, page, row, left = run
            run = Run(entry, column + count, page, row + count, left - count)
            room -= count
            if room == 0:
                yield chunk
                chunk, room = [], most
    if chunk:
        yield chunk
