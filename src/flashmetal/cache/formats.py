"""The formats a cache of keys or values may be stored in, and what they mean.

| format | element | scale, float32 | bytes a token and head of dimension D |
| --- | --- | --- | --- |
| dense | the dtype of q | none | D * itemsize |
| int8 | int8, -127 to 127 | one a token and head, (..., Hk) | D + 4 |
| fp8 | float8_e4m3fn, up to 448 | one a token and head, (..., Hk) | D + 4 |
| int4 | two in a uint8, 0 to 15 for -8 to 7 | one in 32, (..., Hk, D / 32) | D / 2 + D / 8 |

An element stands for code * scale. Of two int4 elements the earlier is the low nibble. These
functions are the definition: kernels that write or read a cache give the same codes and values.
"""

from __future__ import annotations

import torch
from torch import Tensor

FORMATS = ("dense", "int8", "fp8", "int4")
INT4_GROUP = 32  # elements along the head dimension that share a scale
DTYPES = {torch.int8: "int8", torch.float8_e4m3fn: "fp8", torch.uint8: "int4"}
_LARGEST = {"int8": 127.0, "fp8": 448.0, "int4": 7.0}


def quantise(x: Tensor, cache_format: str) -> tuple[Tensor, Tensor | None]:
    """Store x (..., H, D) in a format: (codes, scale), the scale None for "dense".

    The scale takes the largest magnitude of a row (of a group of 32 for int4) to the largest
    code; a row of zeros has scale 0. Quotients are float32 and round half to even. A row (a group)
    with an element that is not finite has no finite scale and codes 0: all of it reads as NaN.

    Raises ValueError for a format that is none of :data:`FORMATS`, or a D that is no multiple of 32
    with int4.
    """
    check_format("quantise", "cache_format", cache_format, x.shape[-1])
    if cache_format == "dense":
        return x, None
    rows = x.float()
    if cache_format == "int4":
        rows = _groups(rows)
    scale = rows.abs().amax(-1) / _LARGEST[cache_format]
    usable = (scale > 0) & (scale < torch.inf)
    codes = torch.where(usable[..., None], rows / scale[..., None], 0.0)
    if cache_format == "fp8":
        return codes.clamp(-448.0, 448.0).to(torch.float8_e4m3fn), scale
    codes = codes.round()
    if cache_format == "int8":
        return codes.to(torch.int8), scale
    nibbles = (codes + 8).to(torch.uint8).flatten(-2)
    return nibbles[..., ::2] | nibbles[..., 1::2] << 4, scale


def dequantise(codes: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The values (..., H, D) in ``dtype``: each code times its scale, both in ``dtype`` first.

    The format is that of the dtype of ``codes``; without a scale they are the values already.
    """
    if scale is None:
        return codes.to(dtype)
    scale = scale.to(dtype)[..., None]
    if codes.dtype != torch.uint8:
        return codes.to(dtype).mul_(scale)
    nibbles = torch.stack((codes & 15, codes >> 4), -1).flatten(-2).to(dtype)
    return _groups(nibbles - 8).mul_(scale).flatten(-2)


def _groups(x: Tensor) -> Tensor:
    """(..., D) as (..., D / 32, 32)."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // INT4_GROUP, INT4_GROUP)


def check_format(function: str, name: str, cache_format: object, head_dim: int) -> None:
    """ValueError for a format that does not exist or cannot hold rows of ``head_dim`` elements."""
    if cache_format not in FORMATS:
        raise ValueError(f"{function}: {name} must be one of {FORMATS}, got {cache_format!r}")
    if cache_format == "int4" and head_dim % INT4_GROUP != 0:
        raise ValueError(
            f"{function}: an int4 cache shares a scale among {INT4_GROUP} elements and needs a "
            f"head_dim that is a multiple of it, got {head_dim}; use int8 or fp8"
        )


def stored_format(dtype: torch.dtype) -> str:
    """The format whose codes have this dtype; any other dtype is dense."""
    return DTYPES.get(dtype, "dense")


def stored_shape(cache_format: str, head_dim: int) -> tuple[int, torch.dtype | None]:
    """(elements of the last dimension, their dtype) of a row of ``head_dim``; None: q's dtype."""
    dtype = next((d for d, name in DTYPES.items() if name == cache_format), None)
    return head_dim // 2 if cache_format == "int4" else head_dim, dtype


def scale_shape(cache_format: str, head_dim: int) -> tuple[int, ...] | None:
    """The dimensions a scale has after (..., Hk): () or (D / 32,); None where there is no scale."""
    if cache_format == "dense":
        return None
    return (head_dim // INT4_GROUP,) if cache_format == "int4" else ()
