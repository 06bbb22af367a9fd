"""The forward kernels: from a problem to one launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from ...problem import AttentionInputs, AttentionProblem
from ...tiles import forward_tile
from . import bindings
from .params import Geometry, pack_integers, pack_scalars
from .runtime import Runtime, runtime_for
from .variant import MSL_TYPES, KernelVariant

MOST_HEAD_DIM = 256
_KERNELS = {"tile": "attention_forward", "scalar": "attention_forward_scalar"}
_SCALAR_GROUP = 64
_WIDEST_LOAD = 16  # bytes
_OPERANDS = (*AttentionInputs._fields, "o", "lse")


def refuse(problem: AttentionProblem) -> str | None:
    """Why the Metal kernels cannot serve this call, in words for the user; None if they can."""
    if runtime_for(problem.device) is None:
        return f"no Metal runtime serves {problem.device} tensors on this machine"
    if problem.dtype not in MSL_TYPES:
        return f"the Metal kernels take float32, float16 and bfloat16, not {problem.dtype}"
    if max(problem.head_dim, problem.head_dim_v) > MOST_HEAD_DIM:
        return (
            f"the Metal kernels take head dims up to {MOST_HEAD_DIM}; got D={problem.head_dim}, "
            f"Dv={problem.head_dim_v}"
        )
    if problem.page_size or problem.leftpad_k:
        return "the Metal kernels read no pages and no left padding yet"
    if problem.k_format != "dense" or problem.v_format != "dense":
        return "the Metal kernels read no quantised cache yet"
    if problem.needs_grad:
        return "the Metal kernels have no backward yet"
    return None


def forward(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    out: Tensor | None = None,
    kernel: str = "tile",
) -> tuple[Tensor, Tensor]:
    """Attention of one call in one launch; see ``plan`` for when it is chosen.

    Returns o, contiguous (B, Sq, Hq, Dv) or (total_q, Hq, Dv) in q's dtype (``out`` if given), and
    lse, float32 (B, Hq, Sq) or (Hq, total_q). ``kernel`` is "tile" or "scalar".
    """
    q, k, v, bias = inputs[:4]
    shape = q.shape
    o = q.new_empty((*shape[:-1], problem.head_dim_v)) if out is None else out
    lse_shape = (shape[0], shape[2], shape[1]) if len(shape) == 4 else (shape[1], shape[0])
    lse = q.new_empty(lse_shape, dtype=torch.float32)
    if o.numel() == 0 or k.numel() == 0:
        return _without_keys(inputs, o, lse)
    runtime = runtime_for(problem.device)
    if runtime is None:
        raise RuntimeError(f"flashmetal: {refuse(problem)}")
    geometry = Geometry(
        q.stride(), k.stride(), v.stride(), None if bias is None else bias.stride(), shape[-3]
    )
    alignment = (q.data_ptr() | k.data_ptr() | v.data_ptr() | o.data_ptr()) % _WIDEST_LOAD
    launch = _launch(problem, geometry, alignment, kernel, runtime)
    operands = (*inputs, o, lse)
    launch.function(
        *[operands[index] for index in launch.operands],
        launch.integers,
        launch.scalars,
        threads=launch.threads,
        group_size=launch.group_size,
    )
    return o, lse


class _Launch(NamedTuple):
    function: Callable[..., None]
    operands: tuple[int, ...]  # indices into _OPERANDS, in binding order
    integers: tuple[int, ...]
    scalars: tuple[float, ...]
    threads: tuple[int, int, int]
    group_size: tuple[int, int, int]


@lru_cache(maxsize=4096)
def _launch(
    problem: AttentionProblem, geometry: Geometry, alignment: int, kernel: str, runtime: Runtime
) -> _Launch:
    vector = _vector(problem, geometry, alignment)
    variant = forward_variant(problem, vector, kernel, runtime.gpu.family)
    rows, group = _SCALAR_GROUP, _SCALAR_GROUP
    if variant.tile is not None:
        rows, group = variant.tile.owned, variant.tile.threads
    groups = -(-problem.seqlen_q // rows)
    return _Launch(
        runtime.kernel(variant),
        tuple(_OPERANDS.index(name) for name in bindings.bound(variant)),
        pack_integers(problem, geometry),
        pack_scalars(problem),
        (groups * group, problem.heads_q, problem.batch),
        (group, 1, 1),
    )


def forward_variant(
    problem: AttentionProblem, vector: int, kernel: str, family: int
) -> KernelVariant:
    """The compile-time facts of the kernel that serves ``problem`` on an Apple GPU ``family``."""
    tile = None
    if kernel == "tile":
        tile = forward_tile(family, problem.dtype.itemsize, problem.head_dim, problem.head_dim_v)
    return KernelVariant(
        kernel=_KERNELS[kernel],
        dtype=problem.dtype,
        head_dim=problem.head_dim,
        head_dim_v=problem.head_dim_v,
        tile=tile,
        vector=vector if tile is not None else 1,
        # A window as long as the sequences masks nothing.
        has_window_left=0 <= problem.window_left < problem.seqlen_k - 1,
        has_window_right=0 <= problem.window_right < problem.seqlen_q - 1,
        has_softcap=problem.softcap > 0.0,
        bias_dtype=problem.bias_dtype,
        has_alibi=problem.alibi is not None,
        has_sinks=problem.sinks,
        is_varlen=problem.layout == "varlen",
        has_seqused_k=problem.seqused_k,
    )


def _vector(problem: AttentionProblem, geometry: Geometry, alignment: int) -> int:
    """Elements in the widest device load that every row of q, k, v and o is aligned to.

    ``alignment`` holds the low bits of their addresses, in bytes.
    """
    size = problem.dtype.itemsize
    bits = _WIDEST_LOAD | alignment | size * (problem.head_dim | problem.head_dim_v)
    for strides in geometry[:3]:
        for stride in strides[:-1]:
            bits |= size * stride
    return (bits & -bits) // size


def _without_keys(inputs: AttentionInputs, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """No key at all: o is 0, and lse holds the sinks alone."""
    if inputs.sinks is None:
        lse.fill_(float("-inf"))
    else:
        lse.copy_(inputs.sinks[:, None].expand_as(lse))
    return o.zero_(), lse
