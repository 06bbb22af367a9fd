"""How the keys and values of a sequence, wherever they lie, become panels to multiply with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..cache_formats import dequantise

# From so many neighbouring keys on, reading them in place beats gathering them with others.
_LEAST_RUN = 64


class Panel(NamedTuple):
    """Some keys of a sequence from ``first`` on: k (N * Hk, keys, D), v (N * Hk, keys, Dv)."""

    first: int
    k: Tensor
    v: Tensor


class PlainKeys(NamedTuple):
    """Keys and values as they are multiplied: k (N * Hk, Sk, D), v (N * Hk, Sk, Dv)."""

    k: Tensor
    v: Tensor

    def panels(self, first: int, end: int, most: int) -> Iterator[Panel]:
        """The keys [first, end) in panels of one size, at most ``most`` keys."""
        for start, stop in _even(first, end, most):
            yield Panel(start, self.k[:, start:stop], self.v[:, start:stop])


class CachedKeys(NamedTuple):
    """One sequence in a cache: k (pages, page_size, Hk, ...) and v, codes or not, of all sequences.

    ``pages`` are those of this sequence in order, -1 for none; the first ``skipped`` rows of them
    are not its own. Panels are converted to ``dtype`` one at a time.
    """

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    pages: list[int]
    skipped: int
    dtype: torch.dtype

    def panels(self, first: int, end: int, most: int) -> Iterator[Panel]:
        """The keys [first, end), but those of missing pages, at most ``most`` at a time.

        Pages that follow each other in the cache are read where they lie, scattered ones are
        gathered a panel at a time.
        """
        size, first, end = self.k.shape[1], first + self.skipped, end + self.skipped
        stretches = _stretches(self.pages, first // size, -(-end // size), _LEAST_RUN // size)
        for page, page_end, in_place in stretches:
            inside = max(first, page * size), min(end, page_end * size)
            for start, stop in _even(*inside, most):
                pages = self.pages[start // size : -(-stop // size)]
                rows = slice(start % size, start % size + stop - start)
                where = slice(pages[0], pages[-1] + 1) if in_place else self._index(pages)
                k = self._by_head(self.k, self.k_scale, where, rows)
                v = self._by_head(self.v, self.v_scale, where, rows)
                yield Panel(start - self.skipped, k, v)

    def plain(self, keys: int) -> tuple[Tensor, Tensor] | None:
        """k (1, keys, Hk, D) and v where they lie, if those are neighbouring pages of no codes."""
        if self.k_scale is not None or self.v_scale is not None or keys == 0:
            return None
        size = self.k.shape[1]
        first, end = self.skipped // size, -(-(self.skipped + keys) // size)
        page, count = self.pages[first], end - first
        whole = self.k.stride(0) == size * self.k.stride(1)
        if count > 1 and not (whole and self.v.stride(0) == size * self.v.stride(1)):
            return None
        if page < 0 or self.pages[first:end] != list(range(page, page + count)):
            return None
        start = self.skipped % size
        rows = slice(start, start + keys)
        k, v = (x[page : page + count].flatten(0, 1)[None, rows] for x in (self.k, self.v))
        return k, v

    def _index(self, pages: list[int]) -> Tensor:
        return torch.tensor(pages, device=self.k.device)

    def _by_head(
        self, codes: Tensor, scale: Tensor | None, where: slice | Tensor, rows: slice
    ) -> Tensor:
        codes = codes[where].flatten(0, 1)[rows]
        scale = None if scale is None else scale[where].flatten(0, 1)[rows]
        return dequantise(codes, scale, self.dtype).transpose(0, 1)


def _even(first: int, end: int, most: int) -> Iterator[tuple[int, int]]:
    """[first, end) in parts of one size: a short last one would cost as many launches as a full."""
    if first < end:
        size = -(-(end - first) // -(-(end - first) // most))
        for start in range(first, end, size):
            yield start, min(start + size, end)


def _stretches(
    pages: list[int], first: int, end: int, least: int
) -> Iterator[tuple[int, int, bool]]:
    """The present pages of [first, end): runs of neighbours from ``least`` on (True), the rest."""
    if pages[first:end] == list(range(pages[first], pages[first] + end - first)):
        yield first, end, True
        return
    page = scattered = first
    while page < end:
        stop = page + 1
        while stop < end and pages[page] >= 0 and pages[stop] == pages[stop - 1] + 1:
            stop += 1
        if pages[page] < 0 or stop - page >= least:
            if scattered < page:
                yield scattered, page, False
            if pages[page] >= 0:
                yield page, stop, True
            scattered = stop
        page = stop
    if scattered < end:
        yield scattered, end, False
