"""Where the keys of sequences lie in a cache: from page numbers to runs of neighbouring rows."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator
from functools import cached_property
from itertools import repeat
from typing import NamedTuple

import torch
from torch import Tensor


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


class Rows(NamedTuple):
    """Rows of a cache one after the other, to be copied."""

    numbers: Tensor  # (rows,) int64, counted through all pages
    empty: list[tuple[int, int]]  # start and count of rows that no page has

    @classmethod
    def of(cls, runs: list[Run], page_size: int, device: torch.device) -> Rows:
        """Those of the runs."""
        numbers = array("q")
        empty: list[tuple[int, int]] = []
        for run in runs:
            if run.page < 0:
                empty.append((len(numbers), run.keys))
                numbers.extend(repeat(0, run.keys))
            else:
                first = run.page * page_size + run.row
                numbers.extend(range(first, first + run.keys))
        return cls(torch.frombuffer(numbers, dtype=torch.int64).to(device), empty)


class Places:
    """N sequences in a cache, which all end at the last of as many columns as the longest has keys.

    So aligned, a band and the distances of ALiBi are the same for all of them. ``page_size`` is
    that of the sequences' pages, ``joined`` whether these are now rows of a single one.
    """

    def __init__(
        self, sequences: list[CachedSequence], page_size: int, joined: bool, device: torch.device
    ) -> None:
        self.sequences, self.width = sequences, max(x.length for x in sequences)
        self.page_size, self.joined, self.device = page_size, joined, device

    @cached_property
    def all_columns(self) -> Columns:
        """The columns [0, width)."""
        return Columns(self, 0, self.width)

    def columns(self, first: int, end: int) -> Columns:
        """The columns [first, end). A part of them is made anew: blocks of rows ask for many."""
        whole = (first, end) == (0, self.width)
        return self.all_columns if whole else Columns(self, first, end)


class Columns:
    """The columns [first, end) of :class:`Places`, and the runs of keys in them."""

    def __init__(self, places: Places, first: int, end: int) -> None:
        self.shape = len(places.sequences), end - first
        self.runs = list(_runs(places, first, end))
        self._page_size, self._device = places.page_size, places.device
        self._keys = sum(run.keys for run in self.runs)

    @cached_property
    def is_mostly_keys(self) -> bool:
        """Whether every sequence has keys in them, in several runs, and at most half are empty."""
        found = len({run.entry for run in self.runs}) == self.shape[0] and len(self.runs) > 1
        return found and math.prod(self.shape) <= 2 * self._keys

    @cached_property
    def absent(self) -> Tensor | None:
        """(N, columns) bool, where a sequence has no key; None where each has them all."""
        if self._keys == math.prod(self.shape):
            return None
        flags = bytearray().join(bytes([piece.page < 0]) * piece.keys for piece in self._pieces())
        return torch.frombuffer(flags, dtype=torch.bool).view(self.shape).to(self._device)

    @cached_property
    def hiding(self) -> Tensor | None:
        """(N, 1, 1, columns) float32 to be added to scores: -inf where ``absent``, else 0."""
        if self.absent is None:
            return None
        mask = torch.zeros(self.shape, dtype=torch.float32, device=self._device)
        return mask.masked_fill_(self.absent, -torch.inf)[:, None, None]

    @cached_property
    def rows(self) -> Rows:
        """All of them side by side, sequence by sequence."""
        return Rows.of(list(self._pieces()), self._page_size, self._device)

    def _pieces(self) -> Iterator[Run]:
        """The runs, and runs of no page where a sequence has no key."""
        end = 0
        for run in self.runs:
            start = run.entry * self.shape[1] + run.column
            if start > end:
                yield Run(0, 0, -1, 0, start - end)
            yield run
            end = start + run.keys
        if end < math.prod(self.shape):
            yield Run(0, 0, -1, 0, math.prod(self.shape) - end)


def _runs(places: Places, first: int, end: int) -> Iterator[Run]:
    """The keys in the columns [first, end), but those of missing pages."""
    size = places.page_size
    for entry, (pages, skipped, length, _) in enumerate(places.sequences):
        shift = places.width - length - skipped  # from rows of the pages to columns
        row, last = max(first - shift, skipped), end - shift
        while row < last:
            index = row // size
            page, stop = pages[index], index + 1
            if page >= 0 and places.joined:
                stop = _neighbours_end(pages, index, -(-last // size))
            row_end = min(stop * size, last)
            if page >= 0:
                column, inside = row + shift - first, row - index * size
                place = (0, page * size + inside) if places.joined else (page, inside)
                yield Run(entry, column, *place, row_end - row)
            row = row_end


def _neighbours_end(pages: list[int], index: int, end: int) -> int:
    """Up to where, at most ``end``, each of the pages from ``index`` on follows the one before."""
    last = pages[index] + end - 1 - index
    if pages[end - 1] == last and pages[index:end] == list(range(pages[index], last + 1)):
        return end
    index += 1
    while index < end and pages[index] == pages[index - 1] + 1:
        index += 1
    return index
