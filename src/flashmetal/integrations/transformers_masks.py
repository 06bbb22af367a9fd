"""The masks of transformers as structure: made once a forward pass, read again in every layer.

A tensor has to say it, for transformers hands on nothing else. A band of keys, causal or as far to
both sides, whole or behind padding, is a tensor (B, code, 1, Sk) that takes B * Sk bytes at most:

- the size of its second dimension is 2 * window, one more if the band goes to both sides. A query
  sees ``window`` keys to a side, its own included; a window of Sk or more hides nothing;
- nonzero keys are real. uint8 says that they are one range in each sequence, where the last query
  stands too, int8 that they may have holes, a stride of 0 over the keys that all are real.

So it may be cut along queries and keys, as some models do. Sequences packed one after the other
are int64, (sequences, size, 1, Sk), holding where each ends; the size is twice the longest one's,
or 2 * window + 1. Anything else is an additive bias.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import masking_utils

from ..settled import once, settle
from .masks import bias_of_mask

MaskFunction = Callable[..., Any]
_BOTH_SIDES = masking_utils.bidirectional_mask_function
_CAUSAL = masking_utils.causal_mask_function
_WINDOW_CODE = masking_utils.sliding_window_overlay(1).__code__
_BOTH_SIDES_WINDOW_CODE = masking_utils.sliding_window_bidirectional_overlay(1).__code__
_PACKED_CODE = masking_utils.packed_sequence_mask_function(torch.empty(0)).__code__
# Before 5.21 windows of packed sequences were taken where the tokens stand, which is the same.
_REMAP: MaskFunction | None = getattr(masking_utils, "remap_positions_for_packed_sequence", None)
_REMAP_CODE = None if _REMAP is None else _REMAP(_CAUSAL, torch.empty(0)).__code__


class Band(NamedTuple):
    """``window`` keys to a side of a query, its own included, None for all; causal: to the left."""

    causal: bool
    window: int | None = None

    def bounds(self, keys: int) -> tuple[int, int]:
        """As window_size of flashmetal's functions, where there are so many keys."""
        side = -1 if self.window is None or self.window >= keys else self.window - 1
        return side, 0 if self.causal else side

    def hides_by_distance(self, keys: int) -> bool:
        return self.window is not None and self.window < keys


class Structure(NamedTuple):
    """A mask as a layer needs it.

    Keys from ``keys`` on are not used; ``first`` and ``end`` (B,) int32 bound those of a sequence.
    ``bias`` (B, 1, 1 or Sq, Sk) is added to the scores. ``ends`` (sequences,) int32 are those of
    packed sequences, the longest of which has ``longest`` tokens at most.
    """

    band: Band
    keys: int
    bias: Tensor | None = None
    first: Tensor | None = None
    end: Tensor | None = None
    ends: Tensor | None = None
    longest: int = 0


def attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int = 0,
    mask_function: MaskFunction = _CAUSAL,
    attention_mask: Tensor | None = None,
    allow_is_causal_skip: bool = True,
    allow_is_bidirectional_skip: bool = False,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **kwargs: Any,
) -> Tensor | None:
    """The mask of one forward pass; the arguments are those of transformers' ``sdpa_mask``.

    Returns None where nothing is hidden but by causality, a structure (see the module), or an
    additive bias (B, 1, Sq, Sk).
    """
    band, real = band_of(mask_function), None
    if band is not None:
        skip = allow_is_causal_skip if band.causal else allow_is_bidirectional_skip
        # No skip means that a model takes the mask apart, or only that a static cache may compile.
        if skip or q_length == 1 and isinstance(q_offset, Tensor):
            padding = _Padding(attention_mask, kv_offset, kv_length)
            real = _real_keys(band, padding, q_length, q_offset, device)
        if real is not None:
            return _band_mask(band, real, batch_size, kv_length, device)
    elif batch_size == 1:
        packed = _packed_mask(mask_function)
        if packed is not None:
            return packed
    mask = masking_utils.sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,  # pyright: ignore[reportArgumentType] static caches give a tensor
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        allow_is_bidirectional_skip=allow_is_bidirectional_skip,
        device=device,
        **kwargs,
    )
    return None if mask is None else bias_of_mask(mask, dtype, kv_length)


def band_of(mask_function: MaskFunction) -> Band | None:
    """The band that a mask function of transformers is, None for any other pattern."""
    if mask_function is _CAUSAL or mask_function is _BOTH_SIDES:
        return Band(mask_function is _CAUSAL)
    parts = _parts(mask_function)
    for base, code in ((_CAUSAL, _WINDOW_CODE), (_BOTH_SIDES, _BOTH_SIDES_WINDOW_CODE)):
        if len(parts) == 2 and parts[1] is base and getattr(parts[0], "__code__", None) is code:
            distance: int = _closure(parts[0])["sliding_window"]
            # transformers counts the query's own key in one direction, and not in two.
            return Band(base is _CAUSAL, distance + (base is _BOTH_SIDES))
    return None


def _closure(function: MaskFunction) -> dict[str, Any]:
    return dict(inspect.getclosurevars(function).nonlocals)


def _parts(mask_function: MaskFunction) -> tuple[MaskFunction, ...]:
    """The functions of a conjunction. Under torch.compile closures cannot be looked into."""
    if torch.compiler.is_compiling() or not isinstance(mask_function, FunctionType):
        return ()
    return tuple(_closure(mask_function).get("mask_functions", ()))


class _Padding(NamedTuple):
    """Transformers' padding mask (B, tokens), nonzero where real, and the keys of the cache."""

    mask: Tensor | None
    offset: int
    keys: int

    def of(self, keys: int) -> Tensor | None:
        """(B, keys) bool of the first keys."""
        if self.mask is None:
            return None
        mask = self.mask[:, self.offset : self.offset + keys].bool()
        return torch.nn.functional.pad(mask, (0, keys - mask.shape[1]))


class _Real(NamedTuple):
    """Which of the first ``length`` keys are real, (B, length) bool, None for all."""

    keys: Tensor | None
    length: int
    one_range: bool


def _real_keys(
    band: Band,
    padding: _Padding,
    q_length: int,
    q_offset: int | Tensor,
    device: torch.device | str,
) -> _Real | None:
    """What the band meets; None where a band and a padding cannot say it."""
    compiling = torch.compiler.is_compiling()
    if isinstance(q_offset, Tensor) and (q_length == 1 or compiling):
        return _after_static_cache(band, padding, q_length, q_offset, device)
    end = int(q_offset) + q_length - padding.offset
    if not band.causal:
        aligned = end == padding.keys or not band.hides_by_distance(padding.keys)
        end = padding.keys if aligned else 0
    if not 0 < end <= padding.keys:
        return None
    real = padding.of(end)
    if real is None or not compiling and bool(real.all()):
        return _Real(None, end, True)
    if compiling:
        return _Real(real, end, False)
    one_range = _is_one_range(real)
    if band.causal and one_range:
        # Padding behind the tokens is seen by padding only, and queries end where the keys do.
        real = real.to(torch.int8).cummax(-1).values.bool()
    elif band.hides_by_distance(end):
        one_range = one_range and bool(real[:, -1].all())
    return _Real(real, end, one_range)


def _after_static_cache(
    band: Band,
    padding: _Padding,
    q_length: int,
    q_offset: Tensor,
    device: torch.device | str,
) -> _Real | None:
    """The length of a static cache is a tensor, which stays unread: its keys beyond are hidden."""
    keys = padding.keys
    if not band.causal:
        return None
    real = (torch.arange(keys, device=device) < q_offset + q_length - padding.offset)[None]
    given = padding.of(keys)
    if given is None:
        return _Real(real, keys, True)
    if q_length > 1 or band.hides_by_distance(keys):
        return None
    real = real & given
    return _Real(real, keys, not torch.compiler.is_compiling() and _is_one_range(real))


def _is_one_range(real: Tensor) -> bool:
    starts = real[:, 0].int() + (real[:, 1:] & ~real[:, :-1]).sum(-1)
    return bool((starts <= 1).all())


def _band_mask(
    band: Band, real: _Real, batch: int, kv_length: int, device: torch.device | str
) -> Tensor | None:
    keys = real.length
    if real.keys is None and keys == kv_length and not band.hides_by_distance(keys):
        return None
    window = keys if band.window is None else min(band.window, keys)
    shape = batch, 2 * window + (not band.causal), 1, keys
    if real.keys is None:
        return torch.ones(1, 1, 1, 1, dtype=torch.uint8, device=device).expand(shape)
    dtype = torch.uint8 if real.one_range else torch.int8
    return real.keys.to(dtype)[:, None, None, :].expand(shape)


def _packed_mask(mask_function: MaskFunction) -> Tensor | None:
    """The structure of one row of sequences packed one after the other, each a causal band."""
    by_code = {getattr(part, "__code__", None): part for part in _parts(mask_function)}
    packed = by_code.pop(_PACKED_CODE, None)
    if packed is None or len(by_code) != 1:
        return None
    ((code, inner),) = by_code.items()
    if _REMAP_CODE is not None and code is _REMAP_CODE:
        inner = _closure(inner)["mask_function"]
    band = band_of(inner)
    if band is None or not band.causal:
        return None
    row: Tensor = _closure(packed)["packed_sequence_mask"][0]
    lengths = torch.bincount(row)
    size = 2 * int(lengths.max()) if band.window is None else 2 * band.window + 1
    ends = torch.nn.functional.pad(lengths.cumsum(0), (0, row.shape[0] - lengths.shape[0]))
    return ends[None, None, None].expand(lengths.shape[0], size, 1, row.shape[0])


def read(mask: Tensor | None, keys: int, causal: bool, dtype: torch.dtype) -> Structure:
    """What a mask says to a layer of so many keys; ``causal`` is asked where the mask does not.

    Masks of the caller's may also be (B, Sk), nonzero for real keys, or complete, (B, Hq|1, Sq|1,
    Sk), boolean (True is visible) or additive, else TypeError. A bias is made in ``dtype``.
    """
    if mask is None:
        return Structure(Band(causal), keys)
    # A complete mask of a caller's has one head or further queries.
    is_structure = mask.ndim == 4 and mask.shape[2] == 1 < mask.shape[1]
    if is_structure and mask.dtype in (torch.int8, torch.uint8):
        # One of ours, or transformers' copy of it: made once a step, read by every layer.
        settle(mask)
        return once((mask,), (_read_band, dtype), lambda: _read_band(mask, dtype))
    if mask.ndim == 2:
        real = (mask != 0)[:, None, None, :]
        return Structure(Band(causal), mask.shape[1], bias_of_mask(real, dtype, mask.shape[1]))
    if is_structure and mask.dtype == torch.int64:
        ends = mask[0, 0, 0, : mask.shape[0]].to(torch.int32)
        size, windowed = divmod(mask.shape[1], 2)
        band, longest = (Band(True, size), keys) if windowed else (Band(True), size)
        return Structure(band, keys, ends=ends, longest=longest)
    bias = bias_of_mask(mask, dtype, mask.shape[-1], "metal_attention: attention_mask")
    return Structure(Band(False), keys, bias)


def _read_band(mask: Tensor, dtype: torch.dtype) -> Structure:
    window, both_sides = divmod(mask.shape[1], 2)
    found = Structure(Band(not both_sides, window), mask.shape[3])
    if mask.stride(3) == 0:
        return found
    if mask.dtype == torch.int8:
        return found._replace(bias=bias_of_mask(mask[:, :1] != 0, dtype, mask.shape[3]))
    real = mask[:, 0, 0].int()
    first = real.argmax(-1).int()
    return found._replace(first=first, end=first + real.sum(-1, dtype=torch.int32))
