"""Hugging Face transformers models on flashmetal.

>>> from flashmetal.integrations import transformers as flashmetal_transformers
>>> flashmetal_transformers.register()
>>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="metal_attention")

No model is patched: two functions are registered under one name, the attention and its mask. The
name has no "flash" in it because transformers looks names with that word up among the packages it
knows.

The mask keeps what it can as structure, so that the engines skip what no query sees: a causal band
or a causal sliding window, whole or behind padding, with a static cache too. Other patterns (packed
sequences, chunks, image blocks, two-sided windows) become an additive bias: right, not skipped.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, masking_utils

from ..api import flash_attn_func

NAME = "metal_attention"

_WINDOW_CODE = masking_utils.sliding_window_overlay(1).__code__
_WHOLE = 0  # the window of a causal mask without one


def register() -> None:
    """Make ``attn_implementation="metal_attention"`` known to transformers (>= 5.17)."""
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, attention_mask)


def unregister() -> None:
    """Undo :func:`register`; models loaded with the name must be given another one first."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        # transformers has register() and no way back.
        interface._global_mapping.pop(NAME, None)  # pyright: ignore[reportPrivateUsage]


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention transformers calls for every layer.

    query (B, Hq, Sq, D), key (B, Hk, Sk, D), value (B, Hk, Sk, Dv), any strides;
    ``attention_mask`` is what :func:`attention_mask` returned, or a complete
    (B|1, Hq|1, Sq|1, Sk) mask of the caller's, boolean (True is visible) or additive.
    Returns ((B, Sq, Hq, Dv), None).
    """
    if kwargs.get("output_attentions"):
        raise NotImplementedError(
            f"{NAME}: output_attentions=True needs the attention weights, which are never formed; "
            'use attn_implementation="eager"'
        )
    if kwargs.get("cache") is not None:
        raise NotImplementedError(
            f"{NAME}: continuous batching (a paged cache) is not supported; use generate()"
        )
    causal, left, bias = False, -1, None
    if attention_mask is None:
        causal = bool(getattr(module, "is_causal", True)) if is_causal is None else is_causal
    elif attention_mask.dtype == torch.int8:
        causal = True
        window, visible = attention_mask.shape[-2:]
        key, value = key[:, :, :visible], value[:, :, :visible]
        left = window - 1 if window < visible else -1
        if attention_mask.stride(-1) != 0:
            bias = _additive(attention_mask[:, :, :1] != 0, query.dtype)
    else:
        bias = _additive(attention_mask, query.dtype)
    if position_bias is not None:
        position_bias = position_bias[..., : key.shape[2]].to(query.dtype)
        bias = position_bias if bias is None else position_bias + bias
    out = flash_attn_func(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=causal,
        window_size=(left, 0 if causal else -1),
        softcap=softcap or 0.0,
        s_aux=s_aux,
        bias=bias,
    )
    return out, None


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = masking_utils.causal_mask_function,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask of one forward pass; the arguments are those of transformers' ``sdpa_mask``.

    Returns one of
    - None: nothing is hidden but by causality;
    - int8 (B, 1, window, visible): a causal band over the first ``visible`` keys, nonzero where a
      key is no padding. The sizes carry the structure: they survive whatever a model does to its
      mask, and the repeated dimensions cost no memory. A window of ``visible`` hides nothing;
    - additive, (B, 1, 1, Sk) or (B, 1, Sq, Sk): everything else.
    """
    compiling = torch.compiler.is_compiling()
    window = _causal_window(mask_function) if allow_is_causal_skip else None
    # A static cache counts in a tensor: read once for a prefill, never for a token or in a graph.
    unread = isinstance(q_offset, Tensor) and (q_length == 1 or compiling)
    padding_unread = compiling and attention_mask is not None
    if window is not None and not unread and not padding_unread:
        visible = int(q_offset) + q_length - kv_offset
        if 0 < visible <= kv_length:
            padding = _padding(attention_mask, kv_offset, visible)
            if padding is None and visible == kv_length <= (window or visible):
                return None
            return _band(padding, batch_size, window or visible, visible, device)
    bidirectional = mask_function is masking_utils.bidirectional_mask_function
    if bidirectional and allow_is_bidirectional_skip and not compiling:
        padding = _padding(attention_mask, kv_offset, kv_length)
        return None if padding is None else _additive(padding[:, None, None, :], dtype)
    mask = masking_utils.sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,  # pyright: ignore[reportArgumentType] static caches give a tensor
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        device=device,
        **kwargs,
    )
    return None if mask is None else _additive(mask, dtype)


def _causal_window(mask_function: Callable[..., Any]) -> int | None:
    """Keys a query sees in a causal band, itself included; _WHOLE: all; None: not a band."""
    if mask_function is masking_utils.causal_mask_function:
        return _WHOLE
    if torch.compiler.is_compiling() or not isinstance(mask_function, FunctionType):
        return None
    parts = inspect.getclosurevars(mask_function).nonlocals.get("mask_functions", ())
    if len(parts) != 2 or parts[1] is not masking_utils.causal_mask_function:
        return None
    overlay = parts[0]
    if not isinstance(overlay, FunctionType) or overlay.__code__ is not _WINDOW_CODE:
        return None
    return inspect.getclosurevars(overlay).nonlocals["sliding_window"]


def _padding(mask: Tensor | None, first: int, length: int) -> Tensor | None:
    """Which of the keys [first, first + length) are real, bool (B, length); None when all are."""
    if mask is None:
        return None
    mask = mask[:, first : first + length].bool()
    missing = length - mask.shape[1]
    if missing > 0:
        mask = torch.nn.functional.pad(mask, (0, missing))
    return None if bool(mask.all()) else mask


def _band(
    padding: Tensor | None, batch: int, window: int, visible: int, device: torch.device | str
) -> Tensor:
    """The int8 form of a causal band; a stride of 0 over the keys says that none is padding."""
    if padding is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.int8, device=device).expand(
            batch, 1, window, visible
        )
    return padding.to(torch.int8)[:, None, None, :].expand(batch, 1, window, visible)


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias of ``dtype`` (or float32): boolean masks become 0 and -inf."""
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(
            ~mask, float("-inf")
        )
    return mask if mask.dtype == torch.float32 else mask.to(dtype)
