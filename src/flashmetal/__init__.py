"""Flash attention for PyTorch on Apple GPUs, and the same functions on any other machine."""

from .api import (
    flash_attention_varlen,
    flash_attn_func,
    flash_attn_kvpacked_func,
    flash_attn_qkvpacked_func,
    flash_attn_varlen_func,
    flash_attn_varlen_kvpacked_func,
    flash_attn_varlen_qkvpacked_func,
)
from .cache.api import flash_attn_3_with_kvcache, flash_attn_with_kvcache
from .cache.page_pool import CacheFullError
from .cache.paged import CacheMemory, CacheShape, CacheStep, PagedKVCache
from .explain import explain
from .tools.trace_report import start_if_asked

__all__ = [
    "CacheFullError",
    "CacheMemory",
    "CacheShape",
    "CacheStep",
    "PagedKVCache",
    "explain",
    "flash_attention_varlen",
    "flash_attn_3_with_kvcache",
    "flash_attn_func",
    "flash_attn_kvpacked_func",
    "flash_attn_qkvpacked_func",
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_attn_with_kvcache",
]

start_if_asked()
