"""What ``flash_attn_interface``, that is flash_attn 3, has, from :mod:`flashmetal`.

num_splits, pack_gqa, sm_margin and deterministic tune CUDA kernels and do nothing here. The other
parameters that flashmetal has no counterpart of raise NotImplementedError.
"""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from torch import Tensor

from ... import api
from ...cache.api import flash_attn_3_with_kvcache, refuse_unserved
from ...merging import join

__all__ = [
    "flash_attn_combine",
    "flash_attn_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_with_kvcache",
    "get_scheduler_metadata",
]

flash_attn_with_kvcache = flash_attn_3_with_kvcache
_UNSERVED = "q_descale k_descale v_descale attention_chunk"


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
) -> Any:
    """:func:`flashmetal.flash_attn_func` in flash_attn 3's order; returns out or (out, lse)."""
    unserved = q_descale, k_descale, v_descale, attention_chunk, qv
    refuse_unserved("flash_attn_func", f"{_UNSERVED} qv", unserved)
    options = 0.0, softmax_scale, causal, window_size, softcap
    return api.flash_attn_func(q, k, v, *options, s_aux=s_aux, return_lse=return_attn_probs)


def flash_attn_qkvpacked_func(
    qkv: Tensor,
    softmax_scale: float | None = None,
    causal: bool = False,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    deterministic: bool = False,
    num_heads_q: int | None = None,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
) -> Any:
    """Attention of qkv (B, S, 3, H, D), or (B, S, Hq + 2 Hk, D) with ``num_heads_q``."""
    function = "flash_attn_qkvpacked_func"
    refuse_unserved(function, _UNSERVED, (q_descale, k_descale, v_descale, attention_chunk))
    options = 0.0, softmax_scale, causal, window_size, softcap
    if num_heads_q is None:
        return api.flash_attn_qkvpacked_func(qkv, *options, return_lse=return_attn_probs)
    heads_k, rest = divmod(qkv.shape[2] - num_heads_q, 2) if qkv.ndim == 4 else (0, 0)
    if rest or heads_k < 1:
        raise ValueError(
            f"{function}: qkv must be (B, S, Hq + 2 Hk, D) with num_heads_q=Hq, got "
            f"{tuple(qkv.shape)} and num_heads_q={num_heads_q}"
        )
    q, k, v = torch.split(qkv, [num_heads_q, heads_k, heads_k], dim=2)
    return api.flash_attn_func(q, k, v, *options, return_lse=return_attn_probs)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    seqused_q: Tensor | None = None,
    seqused_k: Tensor | None = None,
    softmax_scale: float | None = None,
    causal: bool = False,
    qv: Tensor | None = None,
    q_descale: Tensor | None = None,
    k_descale: Tensor | None = None,
    v_descale: Tensor | None = None,
    window_size: tuple[int, int] = (-1, -1),
    attention_chunk: int = 0,
    softcap: float = 0.0,
    num_splits: int = 1,
    pack_gqa: bool | None = None,
    deterministic: bool = False,
    sm_margin: int = 0,
    return_attn_probs: bool = False,
    *,
    s_aux: Tensor | None = None,
) -> Any:
    """:func:`flashmetal.flash_attn_varlen_func` in flash_attn 3's order, without seqused_q."""
    unserved = q_descale, k_descale, v_descale, attention_chunk, qv, seqused_q
    refuse_unserved("flash_attn_varlen_func", f"{_UNSERVED} qv seqused_q", unserved)
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
    options = 0.0, softmax_scale, causal, window_size, softcap
    extras: dict[str, Any] = dict(s_aux=s_aux, seqused_k=seqused_k, return_lse=return_attn_probs)
    return api.flash_attn_varlen_func(q, k, v, *lengths, *options, **extras)


def flash_attn_combine(
    out_partial: Tensor,
    lse_partial: Tensor,
    out: Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """One attention from its parts over different keys.

    Args:
        out_partial: (parts, B, S, H, D) float32.
        lse_partial: (parts, B, S, H) float32, natural logarithms.
        out: (B, S, H, D), written to if given.
        out_dtype: of the result; default out's, or float32.

    Returns:
        out (B, S, H, D) and lse (B, S, H) float32.
    """
    if lse_partial.shape != out_partial.shape[:-1] or not out_partial.shape[0]:
        raise ValueError(
            "flash_attn_combine: lse_partial must be out_partial's shape without its last "
            f"dimension, {tuple(out_partial.shape[:-1])}, of one part or more, got "
            f"{tuple(lse_partial.shape)}"
        )
    if out is not None and out_dtype not in (None, out.dtype):
        raise ValueError(
            f"flash_attn_combine: out must be in out_dtype {out_dtype}, got {out.dtype}"
        )
    lse, weights = join(lse_partial.unbind(0))
    result = (torch.stack(weights)[..., None] * out_partial).sum(0)
    if out is not None:
        return out.copy_(result), lse
    return result.to(out_partial.dtype if out_dtype is None else out_dtype), lse


def get_scheduler_metadata(*args: Any, **kwargs: Any) -> NoReturn:
    """CUDA kernels take a schedule that is made beforehand; ours need none, and take none."""
    raise NotImplementedError(
        "get_scheduler_metadata: flashmetal has no schedule to make; call flash_attn_with_kvcache "
        "without scheduler_metadata"
    )
