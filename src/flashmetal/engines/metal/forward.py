"""The forward kernels: from a problem to one launch."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from ...problem import AttentionInputs, AttentionProblem
from ...tiles import tile_of
from .launch import WIDEST_LOAD, Launch, widest_load
from .params import Geometry, pack_integers, pack_scalars
from .runtime import Runtime, runtime_for
from .variant import MSL_TYPES, KernelVariant, variant_of

MOST_HEAD_DIM = 256
_KERNELS = {"tile": "attention_forward", "scalar": "attention_forward_scalar"}
_SCALAR_GROUP = 64


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
    addresses = (q.data_ptr() | k.data_ptr() | v.data_ptr() | o.data_ptr()) % WIDEST_LOAD
    _launch(problem, geometry, addresses, kernel, runtime).run((*inputs, o, lse))
    return o, lse


@lru_cache(maxsize=4096)
def _launch(
    problem: AttentionProblem, geometry: Geometry, addresses: int, kernel: str, runtime: Runtime
) -> Launch:
    size = problem.dtype.itemsize
    row_bytes = size * (problem.head_dim | problem.head_dim_v)
    vector = widest_load(row_bytes, size, addresses, geometry)
    variant = forward_variant(problem, vector, kernel, runtime.gpu.family)
    rows, group = _SCALAR_GROUP, _SCALAR_GROUP
    if variant.tile is not None:
        rows, group = variant.tile.owned, variant.tile.threads
    scalars = pack_integers(problem, geometry), pack_scalars(problem)
    groups = -(-problem.seqlen_q // rows), problem.heads_q, problem.batch
    return Launch.of(runtime, variant, scalars, groups, group)


def forward_variant(
    problem: AttentionProblem, vector: int, kernel: str, family: int
) -> KernelVariant:
    """The compile-time facts of the kernel that serves ``problem`` on an Apple GPU ``family``."""
    tile = None
    if kernel == "tile":
        sizes = problem.dtype.itemsize, problem.head_dim, problem.head_dim_v
        tile = tile_of("forward", family, *sizes)
    return variant_of(problem, _KERNELS[kernel], tile, vector)


def _without_keys(inputs: AttentionInputs, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """No key at all: o is 0, and lse holds the sinks alone."""
    if inputs.sinks is None:
        lse.fill_(float("-inf"))
    else:
        lse.copy_(inputs.sinks[:, None].expand_as(lse))
    return o.zero_(), lse
