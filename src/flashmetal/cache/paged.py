"""A paged cache of keys and values: many sequences of any length in one pool of pages.

A sequence is a number; its keys lie in pages that it may share with the sequences it was forked
from, and pages are copied when one of them writes (Kwon et al., 2023). A model step is::

    step = cache.step({sequence: new_tokens, ...})
    for layer in range(cache.layers):
        o = flash_attn_3_with_kvcache(q, k=k, v=v, **cache.layer(layer), **step.arguments())
    cache.commit(step)

No key counts before ``commit``: a step that is dropped leaves every sequence as it was. Methods
that raise have changed nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..checks import DTYPES
from ..request import as_length
from ..settled import settle
from .append import AppendInputs, AppendRequest
from .formats import check_format, dequantise, scale_shape, stored_shape
from .ops import append_to_cache
from .page_pool import PagePool


class CacheShape(NamedTuple):
    """What a cache is made for; ``dtype`` is that of the new keys and of a dense cache."""

    layers: int
    pages: int
    page_size: int
    heads: int  # of the keys
    head_dim: int
    head_dim_v: int
    dtype: torch.dtype = torch.float32
    k_format: str = "dense"
    v_format: str = "dense"


class CacheStep(NamedTuple):
    """The sequences of one model step, packed one after the other, and where their keys lie.

    Its tensors are not to be written to: what the first layer reads in them serves the others. It
    is of no use once its sequences have changed or the cache was defragmented.
    """

    sequences: dict[int, int]  # and the new tokens of each
    block_table: Tensor  # (B, pages) int32
    cache_seqlens: Tensor  # (B,) int32, before the step
    cu_seqlens: Tensor  # (B + 1,) int32, of the new tokens
    longest: int
    lengths: tuple[int, ...]  # before the step, as in cache_seqlens
    pages: tuple[tuple[int, ...], ...]  # as in block_table

    def arguments(self) -> dict[str, Any]:
        """For :func:`.cache.api.flash_attn_3_with_kvcache`, beside q, k, v and the layer's."""
        return {
            "page_table": self.block_table,
            "cache_seqlens": self.cache_seqlens,
            "cu_seqlens_q": self.cu_seqlens,
            "cu_seqlens_k_new": self.cu_seqlens,
            "max_seqlen_q": self.longest,
        }

    def positions(self) -> Tensor:
        """The position of every new token, (total,) int64."""
        starts, counts = self.cache_seqlens.long(), self.cu_seqlens.diff()
        first = (starts - self.cu_seqlens[:-1]).repeat_interleave(counts)
        return first + torch.arange(first.shape[0], device=first.device)


class CacheMemory(NamedTuple):
    """What a cache holds. Bytes are of all layers, scales included."""

    pages: int
    pages_used: int
    pages_shared: int
    tokens: int  # that the sequences see, shared ones once for each
    bytes_allocated: int
    bytes_used: int
    bytes_per_token: float


class PagedKVCache:
    """Keys and values of many sequences in one pool of pages, for every layer of a model."""

    def __init__(self, shape: CacheShape, device: torch.device | str = "cpu") -> None:
        """Allocate the whole pool; ValueError or TypeError where the shape is wrong."""
        for name in CacheShape._fields[:6]:
            size = as_length("PagedKVCache", name, getattr(shape, name))
            if size < 1:
                raise ValueError(f"PagedKVCache: {name} must be at least 1, got {size}")
        if shape.dtype not in DTYPES:
            raise TypeError(
                "PagedKVCache: dtype must be one of float16, bfloat16, float32 and float64, got "
                f"{shape.dtype}; k_format and v_format are for quantised caches"
            )
        check_format("PagedKVCache", "k_format", shape.k_format, shape.head_dim)
        check_format("PagedKVCache", "v_format", shape.v_format, shape.head_dim_v)
        self.shape = shape
        self.device = torch.device(device)
        self._pool = PagePool(shape.pages, shape.page_size)
        self._tensors = _storage(shape, self.device)

    @property
    def layers(self) -> int:
        """The layers of the model."""
        return self.shape.layers

    @property
    def sequences(self) -> tuple[int, ...]:
        """The sequences there are."""
        return tuple(self._pool.sequences)

    def length(self, sequence: int) -> int:
        """The keys of a sequence, evicted ones included."""
        return self._pool.find("length", sequence).length

    def allocate(self, tokens: int = 0) -> int:
        """A new, empty sequence with pages for ``tokens`` keys, side by side where there is room.

        They stay the sequence's own until it is released, or evicted from. Raises CacheFullError
        where so many pages are not free.
        """
        return self._pool.allocate(as_length("PagedKVCache.allocate", "tokens", tokens))

    def release(self, sequence: int) -> None:
        """Give a sequence up; its pages are free once no fork needs them."""
        self._pool.release(sequence)

    def fork(self, sequence: int) -> int:
        """A new sequence with the same keys, without a copy: pages are shared until one writes."""
        return self._pool.fork(sequence)

    def truncate(self, sequence: int, length: int) -> None:
        """Forget the keys from ``length`` on, as after rejected speculation.

        Their pages are freed, but for those that :meth:`allocate` took.
        """
        self._pool.truncate(sequence, as_length("PagedKVCache.truncate", "length", length))

    def evict(self, sequence: int, keys: int) -> None:
        """Hide the pages that hold only keys before ``keys``, and free them.

        Positions stay: attention skips the hidden keys as a window would.
        """
        self._pool.evict(sequence, as_length("PagedKVCache.evict", "keys", keys))

    def step(self, sequences: Mapping[int, int]) -> CacheStep:
        """Make room for new tokens of some sequences, and say where their keys lie.

        Pages shared with a fork that are to be written are copied first. Raises CacheFullError
        where the pages are not free, ValueError for an unknown sequence or a negative count, and
        TypeError for one that is no int.
        """
        function = "PagedKVCache.step"
        if not isinstance(sequences, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] users' calls
            raise TypeError(
                f"{function}: sequences must be a mapping of each to its new tokens, got "
                f"{type(sequences).__name__}"
            )
        sequences = {
            s: as_length(function, f"the new tokens of sequence {s!r}", count)
            for s, count in sequences.items()
        }
        for page, copy in self._pool.reserve(sequences):
            for x in self._tensors.values():
                x[:, copy] = x[:, page]
        tables = [self._pool.find("step", s).pages for s in sequences]
        counts = list(sequences.values())
        # Widths in powers of two: a table that grew by a page would be another problem every time.
        width = 1 << max(0, max(map(len, tables), default=0) - 1).bit_length()
        rows = [pages + [-1] * (width - len(pages)) for pages in tables]
        starts = [sum(counts[:b]) for b in range(len(counts) + 1)]
        lengths = [self.length(s) for s in sequences]
        table, seqlens, cu_seqlens = (
            torch.tensor(x, dtype=torch.int32, device=self.device) for x in (rows, lengths, starts)
        )
        table = table.view(-1, width)
        settle(table, seqlens, cu_seqlens)
        most = max(counts, default=0)
        held = tuple(map(tuple, tables))
        return CacheStep(sequences, table, seqlens, cu_seqlens, most, tuple(lengths), held)

    def commit(self, step: CacheStep) -> None:
        """Count the keys that the attention calls of a step have written.

        Raises ValueError where one of its sequences has changed, or moved, since it was made.
        """
        self._pool.advance(step.sequences, step.lengths, step.pages)

    def layer(self, layer: int) -> dict[str, Tensor]:
        """k_cache, v_cache and the scales of one layer, as the attention functions take them."""
        return {name: x[layer] for name, x in self._tensors.items()}

    def append(self, sequence: int, k: Tensor, v: Tensor) -> None:
        """Write keys (layers, S, Hk, D) and values (layers, S, Hk, Dv) behind a sequence's."""
        shape, device = self.shape, self._tensors["k_cache"].device
        rows = k.shape[1] if isinstance(k, Tensor) and k.ndim == 4 else 0  # pyright: ignore[reportUnnecessaryIsInstance] users' calls
        for name, x, head_dim in (("k", k, shape.head_dim), ("v", v, shape.head_dim_v)):
            expected = shape.layers, rows, shape.heads, head_dim
            if not isinstance(x, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance] likewise
                raise TypeError(
                    f"PagedKVCache.append: {name} must be a torch.Tensor, got {type(x).__name__}"
                )
            if (tuple(x.shape), x.dtype, x.device) != (expected, shape.dtype, device):
                raise ValueError(
                    f"PagedKVCache.append: {name} must be {expected} in {shape.dtype} on {device}, "
                    f"got {tuple(x.shape)} in {x.dtype} on {x.device}"
                )
        with self._pool.undoing("append", sequence):
            step = self.step({sequence: rows})
            for layer in range(shape.layers):
                self._append_to_layer(step, self.layer(layer), k[None, layer], v[None, layer])
        self.commit(step)

    def _append_to_layer(
        self, step: CacheStep, caches: dict[str, Tensor], k: Tensor, v: Tensor
    ) -> None:
        inputs = AppendInputs(
            q=None,
            k_new=k,
            v_new=v,
            k_cache=caches["k_cache"],
            v_cache=caches["v_cache"],
            cache_seqlens=step.cache_seqlens,
            block_table=step.block_table,
            k_scale=caches.get("k_scale"),
            v_scale=caches.get("v_scale"),
        )
        append_to_cache(inputs, AppendRequest("PagedKVCache.append"))

    def gather(self, sequence: int, layer: int) -> tuple[Tensor, Tensor]:
        """A dense copy of the keys (S, Hk, D) and values that are not evicted, dequantised."""
        found = self._pool.find("gather", sequence)
        first = found.evicted * self.shape.page_size
        pages = torch.tensor(found.pages[found.evicted :], dtype=torch.long, device=self.device)
        caches = {
            name: x[pages].flatten(0, 1)[: found.length - first]
            for name, x in self.layer(layer).items()
        }
        k, v = (
            dequantise(caches[f"{name}_cache"], caches.get(f"{name}_scale"), self.shape.dtype)
            for name in "kv"
        )
        return k, v

    def defragment(self) -> int:
        """Put the pages of each sequence side by side, from the front; the pages moved.

        Steps that were made before are not to be used any more.
        """
        moves = self._pool.defragment()
        if moves:
            old = torch.tensor(list(moves), device=self.device)
            new = torch.tensor(list(moves.values()), device=self.device)
            for x in self._tensors.values():
                x[:, new] = x[:, old]
        return len(moves)

    def memory(self) -> CacheMemory:
        """Pages and bytes, allocated and in use."""
        total = sum(x.nbytes for x in self._tensors.values())
        pages, size = self.shape.pages, self.shape.page_size
        used, shared, tokens = self._pool.counts()
        return CacheMemory(
            pages, used, shared, tokens, total, total // pages * used, total / pages / size
        )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the sequences and the pages they use as one safetensors file."""
        from .files import save

        pages, state = self._pool.state()
        index = torch.tensor(pages, dtype=torch.long, device=self.device)
        save(
            path,
            self.shape._asdict(),
            state,
            {name: x[:, index] for name, x in self._tensors.items()},
        )

    @classmethod
    def load(
        cls, path: str | PathLike[str], pages: int | None = None, device: torch.device | str = "cpu"
    ) -> PagedKVCache:
        """The cache that was saved, its sequences under their numbers, with ``pages`` pages.

        Raises ValueError where the file is no cache, or holds more pages.
        """
        from .files import load

        described, state, tensors = load(path)
        shape = CacheShape(**described)
        cache = cls(shape._replace(pages=shape.pages if pages is None else pages), device)
        held = cache._pool.restore(state)
        for name, x in cache._tensors.items():
            if name not in tensors or tensors[name].shape != x[:, :held].shape:
                raise ValueError(f"PagedKVCache.load: {path} lacks {name} of the shape it names")
            x[:, :held] = tensors[name].to(x.device)
        return cache


def _storage(shape: CacheShape, device: torch.device) -> dict[str, Tensor]:
    """The caches (layers, pages, page_size, Hk, ...) and their scales, by the name of arguments."""
    rows = shape.layers, shape.pages, shape.page_size, shape.heads
    tensors: dict[str, Tensor] = {}
    formats = ("k", shape.k_format, shape.head_dim), ("v", shape.v_format, shape.head_dim_v)
    for name, cache_format, head_dim in formats:
        width, dtype = stored_shape(cache_format, head_dim)
        cache = torch.zeros((*rows, width), dtype=dtype or shape.dtype, device=device)
        tensors[f"{name}_cache"] = cache
        groups = scale_shape(cache_format, head_dim)
        if groups is not None:
            tensors[f"{name}_scale"] = torch.zeros((*rows, *groups), device=device)
    return tensors
