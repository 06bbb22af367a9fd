"""Transformers' continuous batching (``generate_batch``) on flashmetal, any device.

>>> from flashmetal.integrations.continuous_batching import continuous_batching
>>> with continuous_batching(model):
...     outputs = model.generate_batch(inputs, generation_config)

Keys and values stay in transformers' own pages: new ones are written there, and attention reads
the pages in place. Sliding layers, whose pages transformers keeps as a ring, are read back first.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface

from ..api import flash_attn_varlen_func

# Transformers lets a name serve continuous batching for the word "flash" in it, and looks every
# such name up among the packages it knows when it is set: so it is put where it is read instead.
NAME = "flashmetal_paged"


@contextmanager
def continuous_batching(model: Any) -> Generator[Any]:
    """Within it ``model.generate_batch`` runs on flashmetal; other calls of the model fail."""
    AttentionInterface.register(NAME, paged_attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    before = model.config._attn_implementation
    model.config._attn_implementation = NAME
    try:
        yield model
    finally:
        model.config._attn_implementation = before
        for interface in (AttentionInterface, AttentionMaskInterface):
            # transformers has register() and no way back.
            interface._global_mapping.pop(NAME, None)  # pyright: ignore[reportPrivateUsage]


def _no_mask(*args: Any, **kwargs: Any) -> None:
    """The lengths say what is visible."""


def paged_attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    cache: Any = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The attention of one layer over the packed tokens of all requests.

    query (1, Hq, total, D), key and value (1, Hk, total, ...) are the new ones; ``cache`` is
    transformers' paged cache and ``kwargs`` its indices and lengths. Returns ((1, total, Hq, Dv),
    None).
    """
    if cache is None or attention_mask is not None:
        raise NotImplementedError(
            f"{NAME}: only generate_batch may be called within continuous_batching(model)"
        )
    allocator = cache.layer_to_allocator[module.layer_idx]
    read, write = (kwargs[name][allocator.index] for name in ("read_index", "write_index"))
    table = None
    if allocator.supports_block_table and read.numel():
        starts = kwargs["cu_seq_lens_k"][allocator.layer_type]
        pages = allocator.get_cache_for_block_table(module.layer_idx)
        for cache_pages, rows in zip(pages, (key, value), strict=True):
            cache_pages.flatten(0, 1).index_copy_(0, write, rows[0].transpose(0, 1))
        key, value = pages
        longest = int(kwargs["max_length_k"][allocator.layer_type])
        table = _block_table(read, starts, longest, key.shape[1])
    else:
        # This call writes the new keys, returns them behind the old ones and changes the lengths.
        key, value = cache.update(key, value, module.layer_idx, kwargs)
        starts, longest = kwargs["cu_seq_lens_k"], int(kwargs["max_length_k"])
        key, value = (x[0].transpose(0, 1) for x in (key, value))
    out = flash_attn_varlen_func(
        query[0].transpose(0, 1),
        key,
        value,
        kwargs["cu_seq_lens_q"].to(torch.int32),
        starts.to(torch.int32),
        kwargs["max_length_q"],
        longest,
        dropout_p=dropout,
        softmax_scale=scaling,
        causal=True,
        window_size=(-1 if sliding_window is None else sliding_window - 1, 0),
        softcap=softcap or 0.0,
        block_table=table,
        s_aux=s_aux,
    )
    return out[None], None


def _block_table(read: Tensor, starts: Tensor, longest: int, page_size: int) -> Tensor:
    """(B, pages) int32 from the row of every key, those of a sequence in order from starts[b]."""
    first = torch.arange(0, longest, page_size, device=read.device)
    inside = first < starts.diff()[:, None]
    rows = read[(starts[:-1, None] + first).clamp(max=read.shape[0] - 1)]
    pages = torch.div(rows, page_size, rounding_mode="floor")
    return pages.masked_fill(~inside, -1).to(torch.int32)
