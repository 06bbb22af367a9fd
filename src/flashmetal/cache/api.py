"""Attention over a cache of keys and values, as a decoder runs it: append, rotate, attend.

A cache is contiguous, k_cache (Bc, Smax, Hk, D) and v_cache (Bc, Smax, Hk, Dv), or paged: (pages,
page_size, Hk, D) and a ``block_table`` (B, pages of a sequence) int32, in which key j of sequence b
is row j % page_size of page block_table[b, j // page_size]. Pages may have any size. An entry of
-1 is no page: keys there are hidden, and cannot be written. ``cache_batch_idx`` (B,) int32 picks
the rows of a contiguous cache that the sequences have.

``cache_seqlens``, an int or (B,) int32, counts the keys in use before the call. With k (B, Snew,
Hk, D) and v these are written behind them first, in place; the queries then see old and new
keys, the last query standing at the last key. ``cache_leftpad`` (B,) int32 are keys at the start
of a sequence that are hidden and otherwise count.

``rotary_cos`` and ``rotary_sin`` (seqlen_rotary, rotary_dim / 2) in q's dtype turn the first
rotary_dim elements of the new keys by their positions before they are written, and of the queries:
query i by position cache_seqlens + i in causal and windowed calls, else all by cache_seqlens.
Elements 2 i and 2 i + 1 form a pair, or i and i + rotary_dim / 2 if not ``rotary_interleaved``.

Keys and values may be stored in 8 or 4 bits, each in its own format (:mod:`.cache.formats`), with
``k_scale`` and ``v_scale`` beside them: new rows are quantised as they are written.

A call that raises has written nothing. An append records no gradients, and raises where they are
wanted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import batch_of_offsets, fact_of
from ..ops import attend
from ..request import AttentionInputs, Request, as_length, make_request
from .append import AppendInputs, AppendRequest
from .ops import append_and_attend


def flash_attn_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    block_table: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    alibi_slopes: Tensor | None = None,
    num_splits: int = 0,
    return_softmax_lse: bool = False,
    *,
    s_aux: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    validate: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """Attention over a cache, to which k and v are appended first; see the module's text.

    Args:
        q: (B, Sq, Hq, D); Sq is 1 in a decode, more with speculation or in chunks of a prompt.
        softmax_scale: as are causal, window_size, softcap, alibi_slopes, s_aux, impl and kernel
            those of :func:`.api.flash_attn_func`.
        num_splits: parts the keys are split into; 0 leaves it to the plan. Engines without a split
            give the same result.
        validate: check the values of lengths and tables although that waits for the device.

    Returns:
        out (B, Sq, Hq, Dv), or with ``return_softmax_lse`` (out, lse), lse (B, Hq, Sq) float32.
    """
    function = "flash_attn_with_kvcache"
    new = _NewKeys(k, v, rotary_cos, rotary_sin, rotary_interleaved)
    cache = _Cache(cache_seqlens, cache_batch_idx, block_table, k_scale, v_scale)
    options = softmax_scale, causal, window_size, softcap, impl, kernel, None, validate, num_splits
    request = make_request(function, 0.0, *options)
    inputs = AttentionInputs(q, k_cache, v_cache, None, alibi_slopes, s_aux)
    inputs = inputs._replace(leftpad_k=cache_leftpad)
    results = _attend_to_cache(inputs, cache, new, request)
    return results if return_softmax_lse else results[0]


def flash_attn_3_with_kvcache(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    k: Tensor | None = None,
    v: Tensor | None = None,
    qv: Tensor | None = None,
    rotary_cos: Tensor | None = None,
    rotary_sin: Tensor | None = None,
    cache_seqlens: int | Tensor | None = None,
    cache_batch_idx: Tensor | None = None,
    cache_leftpad: Tensor | None = None,
    page_table: Tensor | None = None,
    cu_seqlens_q: Tensor | None = None,
    cu_seqlens_k_new: Tensor | None = None,
    max_seqlen_q: int | None = None,
    rotary_seqlens: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    rotary_interleaved: bool = True,
    scheduler_metadata: Tensor | None = None,
    num_splits: int = 0,
    pack_gqa: bool | None = None,
    sm_margin: int = 0,
    return_softmax_lse: bool = False,
    *,
    s_aux: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    validate: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """:func:`flash_attn_with_kvcache` with the parameters of flash_attn 3, where they differ:

    ``page_table`` is the block table. q may be packed, (total_q, Hq, D) with ``cu_seqlens_q`` (B +
    1,) int32 and ``max_seqlen_q``, and so k and v with ``cu_seqlens_k_new``: one call then serves
    prompts and decodes. ``rotary_seqlens`` (B,) int32 are positions in place of cache_seqlens.
    ``pack_gqa`` and ``sm_margin`` tune CUDA kernels and do nothing here. qv, the descales,
    attention_chunk and scheduler_metadata raise NotImplementedError; 8-bit caches take k_scale and
    v_scale, a scale a token. lse of packed queries is (Hq, total_q).
    """
    function = "flash_attn_3_with_kvcache"
    unserved = qv, q_descale, k_descale, v_descale, attention_chunk, scheduler_metadata
    refuse_unserved(function, _UNSERVED, unserved)
    rotary = rotary_cos, rotary_sin, rotary_interleaved, rotary_seqlens
    new = _NewKeys(k, v, *rotary, cu_seqlens_k_new)
    cache = _Cache(cache_seqlens, cache_batch_idx, page_table, k_scale, v_scale)
    inputs = AttentionInputs(q, k_cache, v_cache, None, None, s_aux, cu_seqlens_q)
    options = softmax_scale, causal, window_size, softcap, impl, kernel
    request = make_request(function, 0.0, *options, None, validate, num_splits)
    request = request._replace(max_seqlen_q=_longest(function, q, cu_seqlens_q, max_seqlen_q))
    results = _attend_to_cache(inputs._replace(leftpad_k=cache_leftpad), cache, new, request)
    return results if return_softmax_lse else results[0]


class _NewKeys(NamedTuple):
    """What a call appends, by the names of FA2 or FA3."""

    k: Tensor | None
    v: Tensor | None
    cos: Tensor | None
    sin: Tensor | None
    interleaved: bool
    rotary_seqlens: Tensor | None = None
    cu_seqlens_new: Tensor | None = None


class _Cache(NamedTuple):
    """How a call finds its keys in the cache."""

    seqlens: int | Tensor | None
    batch_idx: Tensor | None
    table: Tensor | None
    k_scale: Tensor | None
    v_scale: Tensor | None


def _attend_to_cache(
    inputs: AttentionInputs, cache: _Cache, new: _NewKeys, request: Request
) -> tuple[Tensor, Tensor]:
    function, q = request.function, inputs.q
    for name, x in (("q", q), ("k_cache", inputs.k), ("v_cache", inputs.v)):
        _check_tensor(function, name, x)
    starts, batch = inputs.cu_seqlens_q, q.shape[0]
    if starts is not None:
        _check_tensor(function, "cu_seqlens_q", starts)
        batch = batch_of_offsets(function, "cu_seqlens_q", fact_of(starts))
    seqlens = cache.seqlens
    if isinstance(seqlens, (int, torch.SymInt)):
        seqlens = torch.full((batch,), seqlens, dtype=torch.int32, device=q.device)
    elif seqlens is not None:
        _check_tensor(function, "cache_seqlens", seqlens, "an int or ")
    elif starts is not None:
        raise TypeError(
            f"{function}: packed queries need cache_seqlens, the keys of each sequence, got None"
        )
    inputs = _with_cache(inputs, cache, batch, function)
    if new.k is None and new.v is None:
        if new.cos is not None or new.sin is not None:
            raise ValueError(
                f"{function}: rotary_cos and rotary_sin turn new keys and the queries beside them; "
                "pass k and v too, or rotate q yourself"
            )
        return attend(inputs._replace(seqused_k=seqlens), request)
    if seqlens is None or new.k is None or new.v is None:
        missing = "cache_seqlens" if seqlens is None else "k" if new.k is None else "v"
        raise TypeError(f"{function}: an append needs k, v and cache_seqlens, got {missing}=None")
    append = AppendInputs(
        q if new.cos is not None else None,
        new.k,
        new.v,
        inputs.k,
        inputs.v,
        seqlens,
        inputs.block_table,
        new.cos,
        new.sin,
        inputs.k_scale,
        inputs.v_scale,
        new.rotary_seqlens,
        starts if new.cos is not None else None,
        new.cu_seqlens_new,
    )
    by_row = request.causal or (request.window_left, request.window_right) != (-1, -1)
    how = AppendRequest(
        function,
        request.max_seqlen_q,
        None,
        new.interleaved,
        by_row,
        request.impl,
        request.validate,
    )
    return append_and_attend(append, how, inputs, request)


def _check_tensor(function: str, name: str, x: object, others: str = "") -> None:
    if not isinstance(x, Tensor):
        got = type(x).__name__
        raise TypeError(f"{function}: {name} must be {others}a torch.Tensor, got {got}")


def _with_cache(
    inputs: AttentionInputs, cache: _Cache, batch: int, function: str
) -> AttentionInputs:
    """The inputs with the cache and its table; picked rows are pages as long as the cache."""
    inputs = inputs._replace(block_table=cache.table, k_scale=cache.k_scale, v_scale=cache.v_scale)
    index = cache.batch_idx
    if index is not None:
        if cache.table is not None:
            raise ValueError(
                f"{function}: cache_batch_idx picks rows of a contiguous cache and block_table "
                "pages of a paged one; pass one of them"
            )
        _check_tensor(function, "cache_batch_idx", index)
        if index.dtype != torch.int32 or index.shape != (batch,):
            raise ValueError(
                f"{function}: cache_batch_idx must be ({batch},) int32, got {tuple(index.shape)} "
                f"{index.dtype}"
            )
        return inputs._replace(block_table=index[:, None])
    if cache.table is not None or inputs.k.shape[0] == batch and inputs.cu_seqlens_q is None:
        return inputs
    if inputs.cu_seqlens_q is not None:
        rows = torch.arange(batch, dtype=torch.int32, device=inputs.k.device)
        return inputs._replace(block_table=rows[:, None])
    # flash_attn takes the first rows of a cache for more sequences than came.
    first = [None if x is None else x[:batch] for x in (inputs.k_scale, inputs.v_scale)]
    return inputs._replace(
        k=inputs.k[:batch], v=inputs.v[:batch], k_scale=first[0], v_scale=first[1]
    )


_UNSERVED = "qv q_descale k_descale v_descale attention_chunk scheduler_metadata"


def refuse_unserved(function: str, names: str, values: tuple[object, ...]) -> None:
    """Raise NotImplementedError for the first of the named values that is neither None nor 0."""
    for name, value in zip(names.split(), values, strict=True):
        # A tensor is given, whatever its elements are.
        if value is not None and (isinstance(value, Tensor) or value != 0):
            raise NotImplementedError(
                f"{function}: {name} is not implemented, got {type(value).__name__}; leave it out"
            )


def _longest(
    function: str, q: Tensor, starts: Tensor | None, max_seqlen_q: int | None
) -> int | None:
    """max_seqlen_q of packed queries; all of them may be of one sequence."""
    if max_seqlen_q is not None:
        max_seqlen_q = as_length(function, "max_seqlen_q", max_seqlen_q)
    _check_tensor(function, "q", q)
    if starts is None:
        if max_seqlen_q is not None and max_seqlen_q < q.shape[1]:
            raise ValueError(
                f"{function}: max_seqlen_q must be at least the queries, {q.shape[1]}, got "
                f"{max_seqlen_q}"
            )
        return None
    return q.shape[0] if max_seqlen_q is None else max_seqlen_q
