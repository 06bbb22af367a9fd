"""A flashmetal attention backend for Hugging Face diffusers (0.35 or later).

>>> from flashmetal.integrations import diffusers as flashmetal_diffusers
>>> flashmetal_diffusers.register()
>>> pipeline.transformer.set_attention_backend("flashmetal")

Models whose attention does not go through diffusers' dispatch, as that of the older UNets, call
``torch.nn.functional.scaled_dot_product_attention``: :mod:`.sdpa` serves those.
"""

from __future__ import annotations

from typing import Any

from diffusers.models import attention_dispatch
from torch import Tensor

from ..api import flash_attn_func
from .masks import bias_of_mask, top_left_causal

NAME = "flashmetal"

# diffusers has a closed list of names, and no way to add one but to write into it.
_names: Any = attention_dispatch.AttentionBackendName
_registry: Any = attention_dispatch._AttentionBackendRegistry  # pyright: ignore[reportPrivateUsage]


def register() -> None:
    """Make ``set_attention_backend("flashmetal")`` and ``attention_backend("flashmetal")`` work."""
    if NAME in _names._value2member_map_:
        return
    member = str.__new__(_names, NAME)
    member._name_, member._value_ = NAME.upper(), NAME
    member._sort_order_ = len(_names._member_names_)
    _names._member_names_.append(NAME.upper())
    _names._member_map_[NAME.upper()] = _names._value2member_map_[NAME] = member
    _registry.register(member)(attention)


def unregister() -> None:
    """Undo :func:`register`; models that use the name must be given another one first."""
    member = _names._value2member_map_.pop(NAME, None)
    if member is None:
        return
    del _names._member_map_[NAME.upper()]
    _names._member_names_.remove(NAME.upper())
    for table in (_registry._backends, _registry._constraints, _registry._supported_arg_names):
        table.pop(member, None)
    if _registry._active_backend == member:
        _registry.set_active_backend(_names.NATIVE)


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    return_lse: bool = False,
    _parallel_config: Any = None,
) -> Any:
    """The attention of one layer, with the meaning that diffusers' native backend gives it.

    Args:
        query: (B, Sq, Hq, D); key is (B, Sk, Hk, D) and value (B, Sk, Hk, Dv).
        attn_mask: bool (True is visible) or additive: (B, Sk) over the keys, or whatever
            broadcasts to (B, Hq, Sq, Sk).
        is_causal: query i sees keys up to i; not together with a mask.
        enable_gqa: accepted; fewer key heads are always served.

    Returns (B, Sq, Hq, Dv), or with ``return_lse`` that and lse (B, Hq, Sq) float32.
    """
    if _parallel_config is not None:
        raise NotImplementedError(
            f"{NAME}: context parallelism is not supported by this attention backend; use another "
            "or flashmetal.distributed"
        )
    if is_causal and attn_mask is not None:
        raise ValueError(f"{NAME}: is_causal=True and an attn_mask exclude each other; pass one")
    window = (-1, -1)
    if is_causal:
        seen, window = top_left_causal(query.shape[1], key.shape[1])
        key, value = key[:, :seen], value[:, :seen]
    if attn_mask is not None and attn_mask.shape == key.shape[:2]:
        attn_mask = attn_mask[:, None, None]
    bias = None
    if attn_mask is not None:
        bias = bias_of_mask(attn_mask, query.dtype, key.shape[1], f"{NAME}: attn_mask")
    options: dict[str, Any] = dict(dropout_p=dropout_p, softmax_scale=scale, window_size=window)
    return flash_attn_func(query, key, value, **options, bias=bias, return_lse=return_lse)
