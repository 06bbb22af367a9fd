"""The append kernel: new keys and values into a cache, rotated and quantised, in one launch."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor

from ...cache.append import AppendInputs, CacheAppend
from ...cache.testing_append import assert_append_matches_reference, copied, make_append
from . import bindings, params
from .launch import Launch
from .runtime import Runtime, refuse_tensors, runtime_for
from .variant import declare, storage_facts

_SIMDGROUPS = 4
_OPERANDS = (*AppendInputs._fields, "q_out")
_INTEGERS = (
    "seqlen_q",  # of dense tensors; packed ones read theirs from cu_seqlens
    "seqlen_new",
    "heads_q",
    "heads_k",
    "pages_per_sequence",
    "capacity",  # keys a sequence can hold
    *(
        f"{tensor}_stride_{dimension}"
        for tensor in ("q", "k_new", "v_new")
        for dimension in ("batch", "row", "head")
    ),
    *(
        f"{tensor}_stride_{dimension}"
        for tensor in ("k", "v", "k_scale", "v_scale")
        for dimension in ("batch", "row", "head", "element")
    ),
    "cos_stride",
    "sin_stride",
)


class AppendVariant(NamedTuple):
    """The compile-time facts of one append."""

    dtype: torch.dtype
    head_dim: int
    head_dim_v: int
    page_size: int
    k_format: str
    v_format: str
    rotary_dim: int
    interleaved: bool
    rotate_rows: bool
    has_q: bool
    has_rotary_seqlens: bool
    is_packed_q: bool
    is_packed_new: bool

    def __str__(self) -> str:
        """A name for people."""
        stored = f"{self.k_format}/{self.v_format}" + (" in pages" if self.has_pages else "")
        dims = f"D={self.head_dim}/{self.head_dim_v}"
        return f"cache_append {str(self.dtype).removeprefix('torch.')} {dims} {stored}"

    @property
    def kernel(self) -> str:
        return "cache_append"

    @property
    def has_pages(self) -> bool:
        return self.page_size > 0

    @property
    def has_rotary(self) -> bool:
        return self.rotary_dim > 0

    @property
    def has_k_scale(self) -> bool:
        return self.k_format != "dense"

    @property
    def has_v_scale(self) -> bool:
        return self.v_format != "dense"

    @property
    def has_tensor_operations(self) -> bool:
        return False

    def prelude(self) -> str:
        dims, formats = (self.head_dim, self.head_dim_v), (self.k_format, self.v_format)
        types, sizes = storage_facts(self.dtype, dims, self.page_size, formats)
        flags = {
            "HAS_PAGES": self.has_pages,
            "INTERLEAVED": self.interleaved,
            "ROTATE_ROWS": self.rotate_rows,
            "HAS_ROTARY_SEQLENS": self.has_rotary_seqlens,
            "IS_PACKED_Q": self.is_packed_q,
            "IS_PACKED_NEW": self.is_packed_new,
        }
        sizes["ROTARY_DIM"] = self.rotary_dim
        structs = params.integer_struct(_INTEGERS)
        declarations = bindings.declarations(self, scalars=False)
        return f"{declare(types, flags, sizes)}\n{structs}\n{declarations}\n"


def refuse_append(problem: CacheAppend) -> str | None:
    """Why the Metal kernel cannot serve this append, in words for the user; None if it can."""
    refusal = refuse_tensors(problem.device, problem.dtype)
    runtime = runtime_for(problem.device)
    if refusal is None and runtime is not None:
        refusal = runtime.set_aside.get((problem, "append"))
    return refusal


def append(problem: CacheAppend, inputs: AppendInputs) -> Tensor | None:
    """Write the new rows into the caches, and return q rotated (as it is without a rotation).

    The values of lengths and pages must have been checked, as for the portable engine.
    """
    runtime = runtime_for(problem.device)
    if runtime is None:
        raise RuntimeError(f"flashmetal: {refuse_append(problem)}")
    rotates = problem.rotary_dim > 0
    q, q_out = inputs.q, None
    if rotates and q is not None:
        q_out = torch.empty_like(q, memory_format=torch.contiguous_format)
    inputs = _laid_out(inputs if rotates else inputs._replace(q=None, cu_seqlens_q=None))
    if inputs.k_new.numel() or q_out is not None:
        strides = tuple(None if x is None else x.stride() for x in inputs)
        table = inputs.block_table
        pages = 0 if table is None else table.shape[1]
        _launch(problem, strides, pages, runtime).run((*inputs, q_out))
    return q if q_out is None else q_out


@lru_cache(maxsize=1024)
def _launch(
    problem: CacheAppend,
    strides: tuple[tuple[int, ...] | None, ...],
    pages: int,
    runtime: Runtime,
) -> Launch:
    given = dict(zip(AppendInputs._fields, strides, strict=True))
    has_q = given["q"] is not None
    variant = AppendVariant(
        dtype=problem.dtype,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        page_size=problem.page_size,
        k_format=problem.k_format,
        v_format=problem.v_format,
        rotary_dim=problem.rotary_dim,
        interleaved=problem.interleaved,
        rotate_rows=problem.rotate_rows,
        has_q=has_q,
        has_rotary_seqlens=problem.rotary_seqlens,
        is_packed_q=has_q and problem.packed_q,
        is_packed_new=problem.packed_new,
    )
    runtime.require((variant,), partial(_prove, variant, problem.device), _launch.cache_clear)
    integers = (
        problem.seqlen_q,
        problem.seqlen_new,
        problem.heads_q,
        problem.heads_k,
        pages,
        problem.capacity,
        *_row_strides(given["q"], problem.packed_q),
        *_row_strides(given["k_new"], problem.packed_new),
        *_row_strides(given["v_new"], problem.packed_new),
        *(
            stride
            for name in ("k_cache", "v_cache", "k_scale", "v_scale")
            # An int8 or fp8 scale has no dimension after the heads.
            for stride in (*(given[name] or ()), 0, 0, 0, 0)[:4]
        ),
        *((given[name] or (0,))[0] for name in ("cos", "sin")),
    )
    rows = max(problem.seqlen_new, problem.seqlen_q if has_q else 0)
    heads = problem.heads_k + (problem.heads_q if has_q else 0)
    groups = -(-rows // _SIMDGROUPS), heads, problem.batch
    return Launch.of(runtime, variant, (integers,), groups, 32 * _SIMDGROUPS, _OPERANDS)


def _prove(variant: AppendVariant, device: str) -> None:
    """AssertionError where a small append of this variant is wrong."""
    facts = variant._asdict()
    small, given = make_append(
        has_q=facts.pop("has_q"),
        rotary_seqlens=facts.pop("has_rotary_seqlens"),
        packed_q=facts.pop("is_packed_q"),
        packed_new=facts.pop("is_packed_new"),
        **facts,
    )
    found = copied(given)
    found = found._make(None if x is None else x.to(device) for x in found)
    q = append(small._replace(device=device), found)
    assert_append_matches_reference(found, q, small, given)


def _laid_out(inputs: AppendInputs) -> AppendInputs:
    """As the kernel reads them: last strides 1, vectors contiguous, fp8 as bytes."""
    rows = {
        name: x if x.stride(-1) == 1 else x.contiguous()
        for name in ("q", "k_new", "v_new", "cos", "sin")
        if (x := getattr(inputs, name)) is not None
    }
    vectors = {
        name: x.contiguous()
        for name in (
            "cache_seqlens",
            "block_table",
            "rotary_seqlens",
            "cu_seqlens_q",
            "cu_seqlens_new",
        )
        if (x := getattr(inputs, name)) is not None
    }
    caches = {
        name: x.view(torch.uint8)
        for name in ("k_cache", "v_cache")
        if (x := getattr(inputs, name)).dtype == torch.float8_e4m3fn
    }
    return inputs._replace(**rows, **vectors, **caches)


def _row_strides(strides: tuple[int, ...] | None, packed: bool) -> tuple[int, ...]:
    """(batch, row, head) strides, the batch's 0 in packed tensors."""
    if strides is None:
        return (0, 0, 0)
    return (0, *strides[:2]) if packed else strides[:3]
