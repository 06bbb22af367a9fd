"""Masks of other libraries as the bias of flashmetal's functions."""

from __future__ import annotations

import torch
from torch import Tensor


def bias_of_mask(
    mask: Tensor, dtype: torch.dtype, keys: int, name: str = "attention_mask"
) -> Tensor:
    """A mask that broadcasts to (B, Hq, Sq, keys) as a bias of four dimensions.

    True in a boolean mask is visible. The bias is of ``dtype``, or float32 if the mask is.
    Raises TypeError with ``name`` for a mask of numbers that need not be meant as scores.
    """
    if mask.dtype != torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(
            f"{name} must be boolean (True is visible) or floating-point (added to scores), got "
            f"{mask.dtype}; use .bool() for a mask of 0 and 1"
        )
    if mask.dtype == torch.bool:
        mask = torch.full_like(mask, -torch.inf, dtype=dtype).masked_fill_(mask, 0.0)
    elif mask.dtype != torch.float32:
        mask = mask.to(dtype)
    return mask.expand(*[1] * (4 - mask.ndim), *mask.shape[:-1], keys)


def top_left_causal(rows: int, keys: int) -> tuple[int, tuple[int, int]]:
    """(keys that count, window_size) of a causal mask aligned top-left: row i sees keys up to i.

    Keys past the rows are seen by none; of fewer keys than rows the diagonal ends past the last.
    """
    return min(rows, keys), (-1, max(rows - keys, 0))
