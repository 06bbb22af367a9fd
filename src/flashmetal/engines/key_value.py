"""How the keys and values of sequences, wherever they lie, become panels to multiply with."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.formats import dequantise
from .places import Columns, Places, Rows, Run

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
            numbers = Rows.of(chunk, self.codes.shape[1], self.codes.device)
            rows = self.copied(numbers, dtype).transpose(0, 1)
            start = 0
            for run in chunk:
                yield run, rows.narrow(1, start, run.keys)
                start += run.keys

    def copied(self, rows: Rows, dtype: torch.dtype) -> Tensor:
        """The rows (rows, Hk, D) one after the other, zeros where no page has one."""
        pages, size = self.codes.shape[:2]
        if pages == 1:
            found = [None if x is None else x[0].index_select(0, rows.numbers) for x in self]
        else:
            page = rows.numbers // size
            place = page, rows.numbers - page * size
            found = [None if x is None else x[place] for x in self]
        codes, scale = found
        assert codes is not None
        copied = dequantise(codes, scale, dtype)
        for start, count in rows.empty:
            copied.narrow(0, start, count).zero_()
        return copied


class CachedKeys(NamedTuple):
    """The keys and values of sequences in a cache, and where in it they lie.

    Products are of ``dtype``, those with the values ``head_dim_v`` wide.
    """

    k: Stored
    v: Stored
    places: Places
    head_dim_v: int
    dtype: torch.dtype

    def panels(self, first: int, end: int, most: int) -> Iterator[Panel | CachedPanel]:
        """The columns [first, end) in panels of one size, at most ``most`` columns."""
        for start, stop in _even(first, end, most):
            panel = CachedPanel(start, self.places.columns(start, stop), most, self)
            few = panel.gathered()
            if few is None:
                yield panel
            else:
                k, v = (x.transpose(1, 2).flatten(0, 1) for x in few)
                yield Panel(start, k, v, panel.absent)

    def whole(self) -> CachedPanel:
        """All columns as one panel."""
        return CachedPanel(0, self.places.all_columns, self.places.width, self)

    def plain(self) -> tuple[Tensor, Tensor] | None:
        """k (1, keys, Hk, D) and v of a single sequence where they lie, if that is in one run."""
        width = self.places.width
        if self.k.scale is not None or self.v.scale is not None:
            return None
        runs = self.places.all_columns.runs
        if len(runs) != 1 or runs[0].keys < width:
            return None
        page, rows = runs[0].page, slice(runs[0].row, runs[0].row + runs[0].keys)
        return self.k.codes[None, page, rows], self.v.codes[None, page, rows]


class CachedPanel(NamedTuple):
    """Columns of sequences in a cache, read where they lie; else as a :class:`Panel`."""

    first: int
    columns: Columns
    most: int  # keys to be gathered at a time
    keys: CachedKeys

    @property
    def absent(self) -> Tensor | None:
        """As of a :class:`Panel`."""
        return self.columns.absent

    def scores(self, q: Tensor, scratch: Tensor) -> Tensor:
        """As :meth:`Panel.scores`."""
        (count, columns), rows = self.columns.shape, q.shape[1]
        shape = (count, q.shape[0] // count, rows, columns)
        s = scratch[: math.prod(shape)].view(shape)
        q_of, s_of = q.view(*shape[:3], -1).unbind(0), s.unbind(0)
        for run, k in self.keys.k.read(self.columns.runs, self.keys.dtype, self.most):
            out = s_of[run.entry].narrow(2, run.column, run.keys)
            torch.bmm(q_of[run.entry], k.transpose(1, 2), out=out)
        return s.view(-1, rows, columns)

    def values(self, p: Tensor, o: Tensor | None) -> Tensor:
        """As :meth:`Panel.values`."""
        keys, count = self.keys, self.columns.shape[0]
        if o is None:
            o = p.new_zeros(*p.shape[:2], keys.head_dim_v)
        p_of, o_of = (x.view(count, -1, *x.shape[1:]).unbind(0) for x in (p, o))
        for run, v in keys.v.read(self.columns.runs, keys.dtype, self.most):
            o_of[run.entry].baddbmm_(p_of[run.entry].narrow(2, run.column, run.keys), v)
        return o

    def gathered(self) -> tuple[Tensor, Tensor] | None:
        """Copies k (N, columns, Hk, D) and v (N, columns, Hk, Dv), zeros where a key is absent.

        None where these are too many, lie in one place, are mostly absent, or are all absent of a
        sequence. One product beats many small ones, each of which wakes every thread.
        """
        keys, columns = self.keys, self.columns
        elements = math.prod(columns.shape) * max(keys.k.row_elements, keys.v.row_elements)
        if elements > _GATHERED[keys.k.codes.is_cpu] or not columns.is_mostly_keys:
            return None
        k, v = (x.copied(columns.rows, keys.dtype) for x in (keys.k, keys.v))
        return k.view(*columns.shape, *k.shape[1:]), v.view(*columns.shape, *v.shape[1:])


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
