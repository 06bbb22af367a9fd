"""Caches for tests: the keys of a call put into shuffled pages or a quantised format."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .formats import quantise

_SPARE = 2  # pages that belong to no sequence


class StoredKeys(NamedTuple):
    """The cache's tensors of :class:`.request.AttentionInputs`."""

    k: Tensor
    v: Tensor
    k_scale: Tensor | None
    v_scale: Tensor | None
    block_table: Tensor | None


def store(
    k: Tensor, v: Tensor, formats: tuple[str, str], lengths: Sequence[int], page_size: int
) -> StoredKeys:
    """k and v in a cache.

    They are (B, Sk, Hk, D), or (total, Hk, D), packed with ``lengths``. ``page_size`` 0 quantises
    them where they are; otherwise the pages are shuffled, what no key of a sequence lies in is
    poisoned, and pages that a length does not reach are -1.
    """
    k, k_scale = quantise(k, formats[0])
    v, v_scale = quantise(v, formats[1])
    if page_size == 0:
        return StoredKeys(k, v, k_scale, v_scale, None)
    table = _table(lengths, page_size).to(k.device)
    packed = k.ndim == 3
    stored = [
        None if x is None else _into_pages(x, table, lengths, page_size, packed)
        for x in (k, v, k_scale, v_scale)
    ]
    assert stored[0] is not None
    assert stored[1] is not None
    return StoredKeys(stored[0], stored[1], stored[2], stored[3], table)


def _table(lengths: Sequence[int], page_size: int) -> Tensor:
    """(B, pages of the longest) int32: each sequence's pages anywhere in the cache."""
    counts = [math.ceil(length / page_size) for length in lengths]
    generator = torch.Generator().manual_seed(len(lengths))
    order = torch.randperm(sum(counts) + _SPARE, generator=generator).to(torch.int32)
    table = torch.full((len(counts), max(counts, default=0)), -1, dtype=torch.int32)
    for b, count in enumerate(counts):
        table[b, :count] = order[sum(counts[:b]) :][:count]
    return table


def _into_pages(
    x: Tensor, table: Tensor, lengths: Sequence[int], page_size: int, packed: bool
) -> Tensor:
    pages = int((table >= 0).sum()) + _SPARE
    rows = x.shape[1:] if packed else x.shape[2:]
    poison = math.nan if x.dtype.is_floating_point else 85
    cache = torch.full((pages, page_size, *rows), poison, device=x.device).to(x.dtype)
    for b, length in enumerate(lengths):
        start = sum(lengths[:b])
        own = x[start : start + length] if packed else x[b, :length]
        for first in range(0, length, page_size):
            part = own[first : first + page_size]
            cache[int(table[b, first // page_size]), : len(part)] = part
    return cache
