"""Attention of sequences that are spread over the ranks of a ``torch.distributed`` group.

Each rank holds some rows of q, k and v: those of :func:`local_rows`. The ring passes keys and
values from rank to rank while it computes; Ulysses exchanges rows for heads and back. Both give
each rank its rows of what one machine would compute.
"""

from .api import flash_attn_func, flash_attn_varlen_func
from .sharding import local_rows

__all__ = ["flash_attn_func", "flash_attn_varlen_func", "local_rows"]
