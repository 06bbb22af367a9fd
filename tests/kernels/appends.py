"""Appends to small caches, for the tests of the append kernel."""

from __future__ import annotations

import torch
from torch import Tensor

from flashmetal.cache_append import AppendInputs, AppendRequest, CacheAppend
from flashmetal.cache_formats import quantise

HEADS_K, BATCH, LENGTHS = 2, 3, (0, 5, 11)


def make_append(
    dtype: torch.dtype,
    page_size: int = 0,
    k_format: str = "dense",
    v_format: str = "dense",
    rotary_dim: int = 0,
    interleaved: bool = True,
    rotate_rows: bool = True,
    packed: bool = False,
    head_dim: int = 64,
    head_dim_v: int = 64,
    strided: bool = False,
) -> tuple[CacheAppend, AppendInputs]:
    """Three sequences of 0, 5 and 11 keys that get four more each, or 1, 0 and 3 packed ones."""
    rows = (4,) if packed else (BATCH, 4)

    def rand(*shape: int) -> Tensor:
        if strided:
            return torch.randn(*shape[:-1], 2 * shape[-1] + 3, dtype=dtype)[..., 1 : shape[-1] + 1]
        return torch.randn(shape, dtype=dtype)

    stored = (BATCH, 16) if page_size == 0 else (BATCH * 16 // page_size + 1, page_size)
    caches, scales = [], []
    for cache_format, dim in ((k_format, head_dim), (v_format, head_dim_v)):
        codes, scale = quantise(torch.randn(*stored, HEADS_K, dim, dtype=dtype), cache_format)
        caches.append(codes)
        scales.append(scale)
    table = None
    if page_size:
        pages = torch.randperm(stored[0])[: BATCH * 16 // page_size]
        table = pages.view(BATCH, -1).to(torch.int32)
    starts = torch.tensor([0, 1, 1, 4], dtype=torch.int32) if packed else None
    angles = torch.randn(20, rotary_dim // 2) if rotary_dim else None
    inputs = AppendInputs(
        rand(*rows, 4, head_dim),
        rand(*rows, HEADS_K, head_dim),
        rand(*rows, HEADS_K, head_dim_v),
        *caches,
        torch.tensor(LENGTHS, dtype=torch.int32),
        table,
        None if angles is None else angles.cos().to(dtype),
        None if angles is None else angles.sin().to(dtype),
        *scales,
        None,
        starts,
        starts,
    )
    request = AppendRequest("test", interleaved=interleaved, rotate_rows=rotate_rows)
    return CacheAppend.of(inputs, request), inputs
