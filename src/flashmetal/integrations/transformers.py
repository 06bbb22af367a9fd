"""Hugging Face transformers models on flashmetal.

>>> from flashmetal.integrations import transformers as flashmetal_transformers
>>> flashmetal_transformers.register()
>>> model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="metal_attention")

No model is patched: an attention and its mask are registered, under two names. "metal_attention"
serves forward and generate of every model that asks transformers for its attention; the others, as
Bloom and MPT, are refused by name. "metal_flash_attention" serves ``generate_batch`` too,
and makes models treat attention as flash attention: vision towers pass packed images, for one.
transformers looks names with "flash" in them up among the packages it knows, in one method, before
which :func:`register` puts a function that knows ours.

Masks keep what they can as structure, so that the engines skip what no query sees: bands, causal or
to both sides, behind padding, after a static cache, and packed sequences. Other patterns (chunks,
image blocks) become an additive bias: right, not skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from ..api import flash_attn_func, flash_attn_varlen_func
from .continuous_batching import paged_attention
from .transformers_masks import Band, Structure, attention_mask, read

NAME = "metal_attention"
FLASH_NAME = "metal_flash_attention"

__all__ = ["FLASH_NAME", "NAME", "attention", "attention_mask", "register", "unregister"]

_LENGTHS = "cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"
_CHECK = "_check_and_adjust_attn_implementation"


def register() -> None:
    """Make both names known to transformers (>= 5.17); a second call changes nothing."""
    for name in (NAME, FLASH_NAME):
        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, attention_mask)
    check = getattr(PreTrainedModel, _CHECK)
    if not hasattr(check, "before_flashmetal"):
        setattr(PreTrainedModel, _CHECK, _accepting_our_name(check))


def unregister() -> None:
    """Undo :func:`register`; models loaded with a name must be given another one first."""
    for interface in (AttentionInterface, AttentionMaskInterface):
        for name in (NAME, FLASH_NAME):
            # transformers has register() and no way back.
            interface._global_mapping.pop(name, None)  # pyright: ignore[reportPrivateUsage]
    before = getattr(getattr(PreTrainedModel, _CHECK), "before_flashmetal", None)
    if before is not None:
        setattr(PreTrainedModel, _CHECK, before)


def _accepting_our_name(before: Callable[..., str]) -> Callable[..., str]:
    """transformers' check of a name, which would look ours up among packages and kernels."""

    def check(self: Any, attn_implementation: str | None, *args: Any, **kwargs: Any) -> str:
        if attn_implementation == f"paged|{FLASH_NAME}":
            raise NotImplementedError(
                f"{FLASH_NAME}: generate_batch needs transformers 5.20 or later; use generate()"
            )
        if attn_implementation in (NAME, FLASH_NAME):
            _check_uses_interface(self, attn_implementation)
        if attn_implementation != FLASH_NAME:
            return before(self, attn_implementation, *args, **kwargs)
        if not self._supports_flash_attn:
            raise ValueError(
                f"{FLASH_NAME}: {type(self).__name__} does not support flash attention in "
                f'transformers; use attn_implementation="{NAME}"'
            )
        return self.get_correct_attn_implementation(attn_implementation)

    setattr(check, "before_flashmetal", before)  # noqa: B010 a function has no such attribute
    return check


def _check_uses_interface(model: Any, name: str) -> None:
    """ValueError for a model whose own code computes attention.

    transformers keeps what it finds in the source; a model of a notebook has none, and passes.
    """
    model._can_set_attn_implementation()
    if getattr(model, "_can_set_attn_implementation_cached_value", None) is False:
        raise ValueError(
            f"{name}: {type(model).__name__} does not use transformers' attention interface, so no "
            "implementation can be set; leave attn_implementation out, or for a part of a model "
            f'pass {{"": "{name}", "<part>_config": "eager"}}'
        )


def attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    is_causal: bool | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    cache: Any = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention transformers calls for every layer.

    query (B, Hq, Sq, D), key (B, Hk, Sk, D), value (B, Hk, Sk, Dv), any strides;
    ``attention_mask`` is what :func:`attention_mask` returned, or one of the caller's (see
    :func:`.transformers_masks.read`). With ``cu_seq_lens_q``, ``cu_seq_lens_k``, ``max_length_q``
    and ``max_length_k``, as DataCollatorWithFlattening gives them, sequences are packed and these
    say what is visible. A paged ``cache`` is that of generate_batch.
    Returns ((B, Sq, Hq, Dv), None).
    """
    if kwargs.get("output_attentions"):
        raise NotImplementedError(
            f"{NAME}: output_attentions=True needs the attention weights, which are never formed; "
            'use attn_implementation="eager"'
        )
    if cache is not None:
        # Its lengths say what is visible; the mask made of the step's positions says nothing.
        passed: dict[str, Any] = dict(cache=cache, sliding_window=sliding_window, s_aux=s_aux)
        passed |= dict(dropout=dropout, scaling=scaling, softcap=softcap) | kwargs
        return paged_attention(module, query, key, value, None, **passed)
    tensors = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    options: dict[str, Any] = dict(dropout_p=dropout, softmax_scale=scaling, softcap=softcap or 0.0)
    options["s_aux"] = s_aux
    if is_causal is None:
        is_causal = bool(getattr(module, "is_causal", True))
    lengths = tuple(kwargs.get(name) for name in _LENGTHS)
    if any(x is None for x in lengths):
        found = read(attention_mask, key.shape[2], is_causal, query.dtype)
        if found.ends is None:
            return _attend(tensors, found, position_bias, options), None
        band, lengths = found.band, _lengths(found, query.shape[2], key.shape[2])
    else:
        band = Band(is_causal, sliding_window)
    if position_bias is not None:
        raise NotImplementedError(f"{NAME}: a position_bias of packed sequences; pad them instead")
    return _attend_packed(tensors, band, lengths, options), None


def _attend(
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: Structure,
    position_bias: Tensor | None,
    options: dict[str, Any],
) -> Tensor:
    q, k, v = tensors
    bias = mask.bias
    if mask.keys < k.shape[1]:
        k, v = k[:, : mask.keys], v[:, : mask.keys]
    if position_bias is not None:
        position_bias = position_bias[..., : mask.keys].to(q.dtype)
        bias = position_bias if bias is None else position_bias + bias
    return flash_attn_func(
        q,
        k,
        v,
        window_size=mask.band.bounds(k.shape[1]),
        bias=bias,
        seqused_k=mask.end,
        leftpad_k=mask.first,
        **options,
    )


def _lengths(mask: Structure, queries: int, keys: int) -> tuple[Tensor, Tensor, int, int]:
    """Offsets and longest lengths of packed sequences, of which a model may keep the last rows."""
    assert mask.ends is not None
    starts = torch.nn.functional.pad(mask.ends, (1, 0))
    starts_q = starts if queries == keys else (starts - (keys - queries)).clamp(min=0)
    return starts_q, starts, mask.longest, mask.longest


def _attend_packed(
    tensors: tuple[Tensor, Tensor, Tensor],
    band: Band,
    lengths: tuple[Any, ...],
    options: dict[str, Any],
) -> Tensor:
    """Attention within sequences; rows of a batch lie one after the other."""
    q, k, v = (x.flatten(0, 1) for x in tensors)
    starts_q, starts_k, *longest = lengths
    out = flash_attn_varlen_func(
        q,
        k,
        v,
        starts_q.to(torch.int32),
        starts_k.to(torch.int32),
        *longest,
        window_size=band.bounds(k.shape[0]),
        **options,
    )
    return out.view(*tensors[0].shape[:-1], out.shape[-1])
