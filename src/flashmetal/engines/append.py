"""New keys and values into a cache, in torch operations: rotated, quantised, written in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..cache.append import AppendInputs, CacheAppend
from ..cache.formats import quantise
from ..rotary import apply_rotary_emb_torch
from ..settled import once


def append(problem: CacheAppend, inputs: AppendInputs) -> Tensor | None:
    """Write the new rows into the caches, and return q rotated (as it is without a rotation).

    The values of lengths and pages must have been checked: a row must not fall outside its cache.
    """
    lengths = inputs.cu_seqlens_new, inputs.cache_seqlens, inputs.block_table
    new, place = once(lengths, (_placed, problem), lambda: _placed(problem, inputs))
    k_new, q = inputs.k_new, inputs.q
    # All that may raise comes before the writes.
    if q is not None and problem.rotary_dim:
        rows = _rows(problem.seqlen_q, q, inputs.cu_seqlens_q)
        q = rotate(problem, inputs, q, _angles(inputs, rows, problem.rotate_rows))
    if problem.rotary_dim:
        k_new = rotate(problem, inputs, k_new, _angles(inputs, new, True))
    written = (
        (inputs.k_cache, inputs.k_scale, k_new, problem.k_format),
        (inputs.v_cache, inputs.v_scale, inputs.v_new, problem.v_format),
    )
    for cache, scales, rows, cache_format in written:
        codes, scale = quantise(rows, cache_format)
        cache[place] = codes
        if scales is not None and scale is not None:
            scales[place] = scale
    return q


def _placed(problem: CacheAppend, inputs: AppendInputs) -> tuple[_Rows, tuple[Tensor, Tensor]]:
    """The new rows, and where each goes: indices into the first two dimensions of a cache."""
    new = _rows(problem.seqlen_new, inputs.k_new, inputs.cu_seqlens_new)
    position = inputs.cache_seqlens[new.sequence] + new.row
    if inputs.block_table is None:
        return new, (new.sequence.expand_as(position), position)
    page = torch.div(position, problem.page_size, rounding_mode="floor")
    return new, (inputs.block_table[new.sequence, page], position % problem.page_size)


class _Rows(NamedTuple):
    """For each row of a tensor its sequence and its index there: (B, 1) and (S,), or (total,)."""

    sequence: Tensor
    row: Tensor


def _rows(length: int, x: Tensor, starts: Tensor | None) -> _Rows:
    if starts is None:
        batch = torch.arange(x.shape[0], device=x.device)
        return _Rows(batch[:, None], torch.arange(length, device=x.device))
    row = torch.arange(x.shape[0], device=x.device, dtype=starts.dtype)
    sequence = torch.searchsorted(starts[1:], row, right=True)
    return _Rows(sequence, row - starts[sequence])


def _angles(inputs: AppendInputs, rows: _Rows, by_row: bool) -> Tensor:
    """The position each row is rotated by, as an index into cos and sin."""
    starts = inputs.cache_seqlens if inputs.rotary_seqlens is None else inputs.rotary_seqlens
    start = starts[rows.sequence]
    position = start + rows.row
    return position if by_row else start.expand_as(position)


def rotate(problem: CacheAppend, inputs: AppendInputs, x: Tensor, position: Tensor) -> Tensor:
    """Rotary embedding (Su et al., 2021) of x (..., H, D), in float32 at least.

    The first ``rotary_dim`` elements of a row are pairs, turned by the angles of its position.
    """
    assert inputs.cos is not None
    assert inputs.sin is not None
    dtype = torch.promote_types(x.dtype, torch.float32)
    cos, sin = (table[position].to(dtype) for table in (inputs.cos, inputs.sin))
    return apply_rotary_emb_torch(x.to(dtype), cos, sin, problem.interleaved).to(x.dtype)
