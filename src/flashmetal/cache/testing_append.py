"""Appends to caches for tests: small ones with any of the features, and what is right of one."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..engines import append as portable
from ..testing import error_budget
from .append import AppendInputs, AppendRequest, CacheAppend
from .formats import dequantise, quantise

_HEADS_K, _HEADS_Q, _LENGTHS, _NEW, _CAPACITY = 2, 4, (0, 5, 11), 4, 16


def make_append(
    *,
    dtype: torch.dtype = torch.float32,
    head_dim: int = 64,
    head_dim_v: int = 64,
    page_size: int = 0,
    k_format: str = "dense",
    v_format: str = "dense",
    rotary_dim: int = 0,
    rotary_seqlens: bool = False,
    interleaved: bool = True,
    rotate_rows: bool = True,
    has_q: bool = True,
    packed_q: bool = False,
    packed_new: bool = False,
    strided: bool = False,
    seed: int = 0,
) -> tuple[CacheAppend, AppendInputs]:
    """Three sequences of 0, 5 and 11 keys that get four more each, packed ones 1, 0 and 3."""
    generator = torch.Generator().manual_seed(seed)
    batch = len(_LENGTHS)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    def rows(packed: bool, heads: int, dim: int) -> Tensor:
        wide = 2 * dim + 3 if strided else dim
        x = normal(*((_NEW,) if packed else (batch, _NEW)), heads, wide)
        return x[..., 1 : dim + 1] if strided else x

    pages = math.ceil(_CAPACITY / page_size) if page_size else 0  # of a sequence
    stored = (batch * pages + 1, page_size) if page_size else (batch, _CAPACITY)
    k_cache, k_scale = quantise(normal(*stored, _HEADS_K, head_dim), k_format)
    v_cache, v_scale = quantise(normal(*stored, _HEADS_K, head_dim_v), v_format)
    order = torch.randperm(batch * pages + 1, generator=generator)
    angles = normal(20, rotary_dim // 2).float() if rotary_dim else None
    starts = torch.tensor([0, 1, 1, 4], dtype=torch.int32)
    inputs = AppendInputs(
        q=rows(packed_q, _HEADS_Q, head_dim) if has_q else None,
        k_new=rows(packed_new, _HEADS_K, head_dim),
        v_new=rows(packed_new, _HEADS_K, head_dim_v),
        k_cache=k_cache,
        v_cache=v_cache,
        cache_seqlens=torch.tensor(_LENGTHS, dtype=torch.int32),
        block_table=order[: batch * pages].view(batch, -1).to(torch.int32) if page_size else None,
        cos=None if angles is None else angles.cos().to(dtype),
        sin=None if angles is None else angles.sin().to(dtype),
        k_scale=k_scale,
        v_scale=v_scale,
        rotary_seqlens=torch.tensor((3, 0, 9), dtype=torch.int32) if rotary_seqlens else None,
        cu_seqlens_q=starts if packed_q else None,
        cu_seqlens_new=starts.clone() if packed_new else None,
    )
    if strided:
        inputs = inputs._replace(**{name: _turned(x) for name, x in _caches(inputs).items()})
    request = AppendRequest("make_append", interleaved=interleaved, rotate_rows=rotate_rows)
    return CacheAppend.of(inputs, request), inputs


def _turned(x: Tensor) -> Tensor:
    """In memory its last dimension lies around the one before."""
    return x.transpose(-1, -2).contiguous().transpose(-1, -2)


def _caches(inputs: AppendInputs) -> dict[str, Tensor]:
    names = ("k_cache", "v_cache", "k_scale", "v_scale")
    return {name: x for name in names if (x := getattr(inputs, name)) is not None}


def copied(inputs: AppendInputs) -> AppendInputs:
    """The same append to a copy of the cache."""
    return inputs._replace(**{name: x.clone() for name, x in _caches(inputs).items()})


def assert_append_matches_reference(
    found: AppendInputs, q: Tensor | None, problem: CacheAppend, given: AppendInputs
) -> None:
    """Compare what an engine wrote into ``found``, and the q it returned, with float64.

    ``given`` is the append before, on the CPU. New rows and q are within their budgets as the
    values they stand for; the rest of the cache is as it was, to the bit.
    """
    eager, exact = copied(given), _without_values(given)
    eager_q = portable.append(problem, eager)
    exact_problem = problem._replace(dtype=torch.float64, k_format="dense", v_format="dense")
    exact_q = portable.append(exact_problem, exact)
    for name in "kv":
        expected: Tensor = getattr(exact, f"{name}_cache")
        new = ~expected[..., 0].isnan()
        ours, theirs = (_values(x, name)[new] for x in (found, eager))
        _compare(f"{name}_cache", ours, theirs, expected[new])
        for part in (f"{name}_cache", f"{name}_scale"):
            x, y = getattr(found, part), getattr(given, part)
            if x is not None:
                same = torch.equal(_bytes(x.cpu()[~new]), _bytes(y[~new]))
                assert same, f"{part} is wrong where nothing was to be written"
    if q is not None and eager_q is not None and exact_q is not None:
        _compare("q", q.cpu(), eager_q, exact_q)


def _without_values(given: AppendInputs) -> AppendInputs:
    """In float64, to dense caches of NaN: what is none after the append was written."""
    caches: dict[str, Tensor | None] = {"k_scale": None, "v_scale": None}
    for name in "kv":
        new, cache = getattr(given, f"{name}_new"), getattr(given, f"{name}_cache")
        shape = *cache.shape[:-1], new.shape[-1]
        caches[f"{name}_cache"] = torch.full(shape, math.nan, dtype=torch.float64)
    for name in ("q", "k_new", "v_new", "cos", "sin"):
        x: Tensor | None = getattr(given, name)
        caches[name] = None if x is None else x.double()
    return given._replace(**caches)


def _values(inputs: AppendInputs, name: str) -> Tensor:
    codes, scale = getattr(inputs, f"{name}_cache"), getattr(inputs, f"{name}_scale")
    return codes.cpu() if scale is None else dequantise(codes.cpu(), scale.cpu(), torch.float32)


def _bytes(x: Tensor) -> Tensor:
    return x.contiguous().view(torch.uint8)


def _compare(name: str, found: Tensor, eager: Tensor, exact: Tensor) -> None:
    error, budget = (found.double() - exact).abs().max(), error_budget(eager, exact)
    assert error <= budget, f"{name} is wrong by {float(error):.3g}, more than {budget:.3g}"
