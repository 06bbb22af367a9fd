"""A ComfyUI node that lets a model attend with flashmetal.

Copy this folder into ComfyUI's ``custom_nodes`` and ``pip install flashmetal`` into its Python. The
node "Attention: flashmetal" (model patches) takes a model and gives it back with its attention
replaced; other models of the same workflow are not touched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flashmetal import flash_attn_func
from flashmetal.integrations.masks import bias_of_mask

# What ComfyUI hands to every attention function and that changes no result. fp32 accumulation,
# which attn_precision may ask for, is what flashmetal always does.
HARMLESS = {"_inside_attn_wrapper", "attn_precision", "enable_gqa", "transformer_options"}


def attention_override(
    original: Callable[..., Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    heads: int,
    mask: Tensor | None = None,
    attn_precision: torch.dtype | None = None,
    skip_reshape: bool = False,
    skip_output_reshape: bool = False,
    **options: Any,
) -> Tensor:
    """ComfyUI's ``optimized_attention`` (its ``transformer_options`` entry ends in _override).

    q, k and v are (B, S, H * D), or with ``skip_reshape`` (B, H, S, D); ``mask`` is bool or
    additive, (Sq, Sk), (B, Sq, Sk) or (B, H, Sq, Sk). Returns (B, Sq, H * D), or with
    ``skip_output_reshape`` (B, H, Sq, D). Options that are not known are left to the original.
    """
    if not HARMLESS.issuperset(options):
        options.update(attn_precision=attn_precision, skip_reshape=skip_reshape)
        options["skip_output_reshape"] = skip_output_reshape
        return original(q, k, v, heads, mask, **options)
    if skip_reshape:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    else:
        q, k, v = (x.unflatten(-1, (-1, q.shape[-1] // heads)) for x in (q, k, v))
    if mask is not None and mask.ndim == 3:
        mask = mask[:, None]
    bias = None if mask is None else bias_of_mask(mask, q.dtype, k.shape[1])
    out = flash_attn_func(q, k, v, bias=bias)
    return out.transpose(1, 2) if skip_output_reshape else out.flatten(2)


class FlashmetalAttention:
    """The node, in the form that ComfyUI looks for."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "patch"
    CATEGORY = "model_patches"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",)}}

    def patch(self, model: Any) -> tuple[Any]:
        model = model.clone()
        # A clone shares its options: the entry belongs into a copy.
        options = dict(model.model_options.get("transformer_options", {}))
        options["optimized_attention_override"] = attention_override
        model.model_options = {**model.model_options, "transformer_options": options}
        return (model,)


NODE_CLASS_MAPPINGS = {"FlashmetalAttention": FlashmetalAttention}
NODE_DISPLAY_NAME_MAPPINGS = {"FlashmetalAttention": "Attention: flashmetal"}
