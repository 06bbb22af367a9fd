"""The public functions, with the parameters of flash_attn 2.8 and a few more.

Shapes are B (batch), S (sequence), H (heads), D (head dim); q has Hq heads and k, v have Hk, and
Hq % Hk == 0: query head h reads key head h // (Hq // Hk). Scores, softmax and sums are float32, and
float32 is multiplied exactly unless ``torch.set_float32_matmul_precision`` allows TF32.

Causal masks and windows are aligned bottom-right: query i stands at key i + Sk - Sq, the last
query at the last key. Visible keys (1) with ``causal=True``, and with ``window_size=(1, 0)``::

    Sq = 2, Sk = 5    Sq = 5, Sk = 2         window_size=(1, 0), Sq = Sk = 4
    1 1 1 1 0         0 0   output 0,        1 0 0 0
    1 1 1 1 1         0 0   lse -inf         1 1 0 0
                      0 0                    0 1 1 0
                      1 0                    0 0 1 1
                      1 1

The functions return a Tensor, or a tuple of them where the log-sum-exp is asked for.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .ops import attend, attend_into, dropout_signs, with_rng_state
from .request import AttentionInputs, Request, make_request, unpack, with_key_lengths


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    seqused_k: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """Attention of a batch of equally long sequences.

    Args:
        q: (B, Sq, Hq, D), float32, float16 or bfloat16, any strides.
        k: (B, Sk, Hk, D), same dtype and device.
        v: (B, Sk, Hk, Dv), same dtype and device.
        dropout_p: probability from 0 to below 1 that an entry of softmax(scores) is dropped; which
            are, torch's generator of the device decides. Others are scaled by 1 / (1 - dropout_p).
        softmax_scale: factor of q.k; default 1 / sqrt(D).
        causal: query i sees keys up to i + Sk - Sq (bottom-right, see the module's picture).
        window_size: (left, right), inclusive: query i sees keys i + Sk - Sq - left to
            i + Sk - Sq + right; -1 is unbounded. ``causal`` sets right to 0.
        softcap: scores become softcap * tanh(score / softcap); 0.0 is none.
        alibi_slopes: (Hq,) or (B, Hq) float32; adds -slope * |i + Sk - Sq - j| to the scores.
        deterministic: accepted; every engine always is.
        return_attn_probs: return (out, lse, mask); mask is None without dropout, else (B, Hq, Sq,
            Sk) in q's dtype, -1 where an entry was dropped and 1 elsewhere.
        s_aux: (Hq,) attention sinks, a logit a head (natural-log units) in the denominator only.
        bias: (B or 1, Hq or 1, Sq or 1, Sk) in q's dtype or float32, added after softcap.
        return_lse: return (out, lse).
        seqused_k: (B,) int32, keys in use: in place of Sk above, and no others are read.
        leftpad_k: (B,) int32, keys at the start that are padding: hidden, yet counted.
        impl: "auto", or the engine that must serve: "metal", "portable", "stock", "reference".
        kernel: "tensor", "simdgroup", "scalar" or "decode", with ``impl="metal"`` only.

    Returns:
        out (B, Sq, Hq, Dv), contiguous, in q's dtype. lse is (B, Hq, Sq) float32, the natural
        logarithm of the softmax's denominator. A row without keys has out 0, lse -inf or the sink.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it and what to do.
        NotImplementedError: the engine asked for cannot serve the call.
    """
    inputs = AttentionInputs(q, k, v, bias, alibi_slopes, s_aux, seqused_k=seqused_k)
    inputs = inputs._replace(leftpad_k=leftpad_k)
    request = make_request(
        "flash_attn_func", dropout_p, softmax_scale, causal, window_size, softcap, impl, kernel
    )
    return _call(inputs, request, return_attn_probs, return_lse)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """:func:`flash_attn_func` of qkv (B, S, 3, H, D), whose parts are read where they lie."""
    function = "flash_attn_qkvpacked_func"
    q, k, v = unpack(function, "qkv", qkv, (3, 5))
    inputs = AttentionInputs(q, k, v, bias, alibi_slopes, s_aux)
    request = make_request(
        function, dropout_p, softmax_scale, causal, window_size, softcap, impl, kernel
    )
    return _call(inputs, request, return_attn_probs, return_lse)


def flash_attn_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """:func:`flash_attn_func` of q (B, Sq, Hq, D) and kv (B, Sk, 2, Hk, D), both as they lie."""
    function = "flash_attn_kvpacked_func"
    k, v = unpack(function, "kv", kv, (2, 5))
    inputs = AttentionInputs(q, k, v, bias, alibi_slopes, s_aux)
    request = make_request(
        function, dropout_p, softmax_scale, causal, window_size, softcap, impl, kernel
    )
    return _call(inputs, request, return_attn_probs, return_lse)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    block_table: Tensor | None = None,
    *,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    seqused_k: Tensor | None = None,
    k_scale: Tensor | None = None,
    v_scale: Tensor | None = None,
    validate: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """Attention of sequences of any lengths, packed one after the other without padding.

    Sequence b holds the rows cu_seqlens_q[b] to cu_seqlens_q[b + 1] of q, and so for k and v;
    sequences may be empty. Alignment, bias and positions are within each sequence. All other
    parameters, results and errors are those of :func:`flash_attn_func`.

    Args:
        q: (total_q, Hq, D); k is (total_k, Hk, D) and v (total_k, Hk, Dv).
        cu_seqlens_q: (B + 1,) int32 on q's device, from 0 to total_q; so cu_seqlens_k for k.
        max_seqlen_q: the longest query sequence, or more; so max_seqlen_k. A tensor is read, which
            waits for its device; an int does not.
        block_table: (B, pages) int32: k and v are a paged cache, (all pages, page_size, Hk, D or
            Dv), and key j of sequence b is row j % page_size of page block_table[b, j //
            page_size], -1 for none. Of cu_seqlens_k only the differences count.
        bias: (B or 1, Hq or 1, max_seqlen_q or 1, max_seqlen_k or, paged, pages * page_size).
        seqused_k: (B,) int32, keys in use at the start of each key sequence; the rest is not read.
        k_scale: of a quantised k (:func:`.cache.formats.quantise`); so v_scale for v.
        validate: check the values of cu_seqlens and seqused_k although that waits for the device.
            Those of CPU tensors are always checked.

    Returns out (total_q, Hq, Dv); lse is (Hq, total_q).
    """
    function = "flash_attn_varlen_func"
    lengths_of = cu_seqlens_q, cu_seqlens_k, seqused_k
    cache = block_table, None, k_scale, v_scale
    inputs = AttentionInputs(q, k, v, bias, alibi_slopes, s_aux, *lengths_of, *cache)
    options = softmax_scale, causal, window_size, softcap, impl, kernel
    lengths = max_seqlen_q, max_seqlen_k
    request = make_request(function, dropout_p, *options, lengths, validate)
    inputs, request = with_key_lengths(inputs, request)
    return _call(inputs, request, return_attn_probs, return_lse)


def flash_attn_varlen_qkvpacked_func(
    qkv: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    validate: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """:func:`flash_attn_varlen_func` of qkv (total, 3, H, D), whose parts are read in place."""
    function = "flash_attn_varlen_qkvpacked_func"
    q, k, v = unpack(function, "qkv", qkv, (3, 4))
    inputs = AttentionInputs(q, k, v, bias, alibi_slopes, s_aux, cu_seqlens, cu_seqlens)
    options = softmax_scale, causal, window_size, softcap, impl, kernel
    lengths = max_seqlen, max_seqlen
    request = make_request(function, dropout_p, *options, lengths, validate)
    return _call(inputs, request, return_attn_probs, return_lse)


def flash_attn_varlen_kvpacked_func(
    q: Tensor,
    kv: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    deterministic: bool = False,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
    bias: Tensor | None = None,
    return_lse: bool = False,
    seqused_k: Tensor | None = None,
    validate: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> Any:
    """:func:`flash_attn_varlen_func` of q (total_q, Hq, D) and kv (total_k, 2, Hk, D)."""
    function = "flash_attn_varlen_kvpacked_func"
    k, v = unpack(function, "kv", kv, (2, 4))
    inputs = AttentionInputs(
        q, k, v, bias, alibi_slopes, s_aux, cu_seqlens_q, cu_seqlens_k, seqused_k
    )
    options = softmax_scale, causal, window_size, softcap, impl, kernel
    lengths = max_seqlen_q, max_seqlen_k
    request = make_request(function, dropout_p, *options, lengths, validate)
    return _call(inputs, request, return_attn_probs, return_lse)


def flash_attention_varlen(
    out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | Tensor,
    max_seqlen_k: int | Tensor,
    do_causal: bool,
    scale: float,
    softcapping: float,
    *,
    validate: bool = False,
    impl: str = "auto",
    kernel: str | None = None,
) -> None:
    """Packed attention written into ``out``, with the parameters of the metal-flash-sdpa kernels.

    Args:
        out: (total_q, Hq, Dv) in query's dtype, overwritten; it must not overlap the inputs.
        query: (total_q, Hq, D).
        key: (total_k, Hk, D).
        value: (total_k, Hk, Dv).
        cu_seqlens_q: (B + 1,) int32, as are all lengths of :func:`flash_attn_varlen_func`.
        cu_seqlens_k: (B + 1,) int32.
        max_seqlen_q: the longest query sequence, or more.
        max_seqlen_k: the longest key sequence, or more.
        do_causal: query i sees keys up to i + Sk - Sq.
        scale: factor of q.k, as 1 / sqrt(D).
        softcapping: scores become softcapping * tanh(score / softcapping); 1.0 (or 0.0) is none.
        validate: as in :func:`flash_attn_varlen_func`; so are ``impl`` and ``kernel``.
    """
    function = "flash_attention_varlen"
    inputs = AttentionInputs(
        query, key, value, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k
    )
    softcap = 0.0 if softcapping == 1.0 else softcapping
    options = scale, do_causal, (-1, -1), softcap, impl, kernel
    lengths = max_seqlen_q, max_seqlen_k
    request = make_request(function, 0.0, *options, lengths, validate)
    attend_into(out, inputs, request)


def _call(inputs: AttentionInputs, request: Request, with_probs: bool, with_lse: bool) -> Any:
    """What flash_attn returns: out, or (out, lse, dropout's mask or None); ours: (out, lse)."""
    if request.dropout_p:
        inputs = with_rng_state(inputs, request)
    results = attend(inputs, request)
    if with_probs:
        return (*results, dropout_signs(inputs, request) if request.dropout_p else None)
    return results if with_lse else results[0]
