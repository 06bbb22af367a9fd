"""What ``flash_attn`` 2.8 has, from :mod:`flashmetal`."""

from __future__ import annotations

from ...api import (
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from ...api_operators import (
    flash_attn_backward,
    flash_attn_forward,
    flash_attn_varlen_backward,
    flash_attn_varlen_forward,
)
from ...cache.api import flash_attn_with_kvcache
from .finder import VERSION as __version__

_flash_attn_forward = _wrapped_flash_attn_forward = flash_attn_forward
_flash_attn_backward = _wrapped_flash_attn_backward = flash_attn_backward
_flash_attn_varlen_forward = _wrapped_flash_attn_varlen_forward = flash_attn_varlen_forward
_flash_attn_varlen_backward = _wrapped_flash_attn_varlen_backward = flash_attn_varlen_backward

__all__ = [
    "__version__",
    "_flash_attn_backward",
    "_flash_attn_forward",
    "_flash_attn_varlen_backward",
    "_flash_attn_varlen_forward",
    "_wrapped_flash_attn_backward",
    "_wrapped_flash_attn_forward",
    "_wrapped_flash_attn_varlen_backward",
    "_wrapped_flash_attn_varlen_forward",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]
