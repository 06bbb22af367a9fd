"""Masks of other libraries as the bias of flashmetal's functions."""

from __future__ import annotations

import torch
from torch import Tensor


def bias_of_mask(mask: Tensor, dtype: torch.dtype, keys: int) -> Tensor:
    """A mask that broadcasts to (B, Hq, Sq, keys) as a bias of four dimensions.

    True in a boolean mask is visible. The bias is of ``dtype``, or float32 if the mask is.
    """
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=dtype).masked_fill_(~mask, -torch.inf)
    elif mask.dtype != torch.float32:
        mask = mask.to(dtype)
    return mask.expand(*[1] * (4 - mask.ndim), *mask.shape[:-1], keys)
