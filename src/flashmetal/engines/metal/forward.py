"""The forward kernels: from a problem to one launch."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from ...problem import AttentionProblem
from ...request import AttentionInputs
from ...testing import assert_matches_reference
from .cooperative import layout_of
from .decode import decode
from .launch import WIDEST_LOAD, Addresses, Launch, loads_of, packed_blocks, work_of
from .params import Geometry, pack_integers, pack_scalars
from .proof import small_call, without_spare
from .runtime import Runtime, refuse_tensors, runtime_for
from .tile_choice import Choice, Pinned, choose_tile
from .tiles import most_head_dim
from .variant import KernelVariant, Loads, variant_of

MOST_HEAD_DIM = most_head_dim("forward")
_KERNELS = {
    "simdgroup": "attention_forward",
    "tensor": "attention_forward",
    "scalar": "attention_forward_scalar",
}
_SCALAR_GROUP = 64
_SCALAR_PRODUCTS = 16  # of which two are made, an eighth as fast: each lane loads its own elements


def refuse(problem: AttentionProblem) -> str | None:
    """Why the Metal kernels cannot serve this call, in words for the user; None if they can."""
    reason = refuse_tensors(problem.device, problem.dtype)
    if reason is not None:
        return reason
    if max(problem.head_dim, problem.head_dim_v) > MOST_HEAD_DIM:
        return (
            f"the Metal kernels take head dims up to {MOST_HEAD_DIM}; got D={problem.head_dim}, "
            f"Dv={problem.head_dim_v}"
        )
    return None


def forward(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    out: Tensor | None = None,
    kernel: str = "simdgroup",
    pinned: Pinned = (),
) -> tuple[Tensor, Tensor]:
    """Attention of one call; see ``plan`` for when it is chosen.

    One launch, and a second one where "decode" splits over keys. Returns o, contiguous (B, Sq, Hq,
    Dv) or (total_q, Hq, Dv) in q's dtype (``out`` if given), and lse, float32 (B, Hq, Sq) or (Hq,
    total_q). ``kernel`` is "simdgroup", "tensor", "scalar" or "decode", ``pinned`` a tile to take.
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
        q.stride(),
        k.stride(),
        v.stride(),
        None if bias is None else bias.stride(),
        shape[-3],
        rows_k=0 if problem.page_size else k.shape[-3],
    )
    if problem.page_size or problem.k_format != "dense" or problem.v_format != "dense":
        inputs, geometry = _cached(inputs, geometry)
    addresses = Addresses(
        (q.data_ptr() | o.data_ptr()) % WIDEST_LOAD,
        k.data_ptr() % WIDEST_LOAD,
        v.data_ptr() % WIDEST_LOAD,
    )
    if kernel == "decode":
        decode(problem, (*inputs, o, lse), geometry, addresses, runtime, prove_forward, pinned)
    else:
        _launch(problem, geometry, addresses, kernel, runtime, pinned).run((*inputs, o, lse))
    return o, lse


def _cached(inputs: AttentionInputs, geometry: Geometry) -> tuple[AttentionInputs, Geometry]:
    """What a cache has beside dense tensors: pages and scales. Metal knows fp8 as bytes."""
    k, v, k_scale, v_scale = inputs.k, inputs.v, inputs.k_scale, inputs.v_scale
    table = inputs.block_table
    geometry = geometry._replace(
        k_scale=None if k_scale is None else k_scale.stride(),
        v_scale=None if v_scale is None else v_scale.stride(),
        pages=0 if table is None else table.shape[1],
    )
    if k.dtype == torch.float8_e4m3fn:
        k = k.view(torch.uint8)
    if v.dtype == torch.float8_e4m3fn:
        v = v.view(torch.uint8)
    return inputs._replace(k=k, v=v), geometry


@lru_cache(maxsize=4096)
def _launch(
    problem: AttentionProblem,
    geometry: Geometry,
    addresses: Addresses,
    kernel: str,
    runtime: Runtime,
    pinned: Pinned,
) -> Launch:
    loads = loads_of(problem, geometry, addresses)
    variant = forward_variant(problem, loads, kernel, runtime, pinned)
    rows, group, products = _SCALAR_GROUP, _SCALAR_GROUP, _SCALAR_PRODUCTS
    if variant.tile is not None:
        rows, group, products = variant.tile.owned, variant.tile.threads, 2
        pinned = (("forward", Choice(variant.tile)),)
    prove = partial(prove_forward, problem, loads, kernel, pinned)
    runtime.require((variant,), prove, _launch.cache_clear)
    scalars = pack_integers(problem, geometry), pack_scalars(problem)
    longest = min(problem.seqlen_q, geometry.rows_q)  # a packed call may say more than there is
    groups = -(-longest // rows), problem.heads_q, problem.batch
    work = work_of(
        problem, rows, min(problem.seqlen_k, geometry.rows_k or problem.seqlen_k), products
    )
    blocks = packed_blocks(problem, geometry.rows_q, rows)
    return Launch.of(runtime, variant, scalars, groups, group, work=work, blocks=blocks)


def forward_variant(
    problem: AttentionProblem, loads: Loads, kernel: str, runtime: Runtime, pinned: Pinned = ()
) -> KernelVariant:
    """The compile-time facts of the kernel that serves ``problem`` on the runtime's GPU."""
    if kernel == "scalar":
        return variant_of(problem, _KERNELS[kernel], None, loads)
    layout = layout_of(runtime, problem.dtype, problem.tf32) if kernel == "tensor" else ""
    tile = choose_tile(problem, "forward", kernel, runtime, layout, pinned).tile
    return variant_of(problem, _KERNELS[kernel], tile, loads)._replace(layout=layout)


def prove_forward(problem: AttentionProblem, loads: Loads, kernel: str, pinned: Pinned) -> None:
    """AssertionError where ``kernel`` is wrong on a small problem like this one."""
    group = problem.heads_q // problem.heads_k if kernel == "decode" else 2
    small, inputs = small_call(problem, loads, group)
    o, lse = forward(small, inputs, kernel=kernel, pinned=pinned)
    on_cpu = small._replace(device="cpu", tf32=small.tf32 and kernel == "tensor")
    assert_matches_reference(o, lse, *without_spare(on_cpu, inputs))


def _without_keys(inputs: AttentionInputs, o: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
    """No key at all: o is 0, and lse holds the sinks alone."""
    if inputs.sinks is None:
        lse.fill_(float("-inf"))
    else:
        lse.copy_(inputs.sinks[:, None].expand_as(lse))
    return o.zero_(), lse
