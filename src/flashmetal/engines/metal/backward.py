"""The backward kernels: delta, then the gradients of q, of k and v, and of a bias."""

from __future__ import annotations

from functools import lru_cache, partial

import torch
from torch import Tensor

from ...gradients import Gradients, QueryRows, sink_gradient
from ...problem import AttentionProblem
from ...reference import attention_reference
from ...request import AttentionInputs
from ...testing import assert_gradients_match_reference, differentiable, make_output_gradients
from .cooperative import layout_of
from .forward import refuse
from .launch import WIDEST_LOAD, Addresses, Launch, loads_of, packed_blocks, work_of
from .params import Geometry, pack_backward_integers, pack_scalars
from .proof import small_call
from .runtime import Runtime, runtime_for
from .tile_choice import Choice, Pinned, choose_tile
from .tiles import Tile, most_head_dim
from .variant import KernelVariant, Loads, variant_of

_DELTA_SIMDGROUPS = 4
_TILES = {"q": "grad q", "k": "grad kv", "bias": "grad q"}  # a gradient: the kernel of its tile


def refuse_backward(problem: AttentionProblem) -> str | None:
    """Why the Metal kernels cannot give this call's gradients, in words; None if they can."""
    if problem.page_size or problem.k_format != "dense" or problem.v_format != "dense":
        return "the Metal backward kernels read no cache: it records no gradients"
    most = most_head_dim("grad q")
    if max(problem.head_dim, problem.head_dim_v) > most:
        return (
            f"the Metal backward kernels take head dims up to {most}; got D={problem.head_dim}, "
            f"Dv={problem.head_dim_v}"
        )
    runtime = runtime_for(problem.device)
    return refuse(problem) or (runtime and runtime.set_aside.get((problem, "backward")))


def backward(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    rows: QueryRows,
    wanted: tuple[str, ...],
    kernel: str = "simdgroup",
    pinned: Pinned = (),
) -> Gradients:
    """The gradients by the inputs named in ``wanted`` (FlashAttention-2, Dao 2023), no atomics.

    ``rows`` hold what :func:`.forward.forward` returned. ``kernel`` "tensor" takes tensor
    operations, any other simdgroup matrices; ``pinned`` are tiles to take.
    Memory beside the results is one float32 a query row and head.
    """
    o, lse, grad_o, grad_lse = rows
    o, lse = o.contiguous(), lse.contiguous()
    grad_o = grad_o if grad_o.stride(-1) == 1 else grad_o.contiguous()
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    tensors = {name: getattr(inputs, name) for name in wanted}
    gradients = {
        name: torch.empty_like(tensor, memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    delta = torch.empty_like(lse)
    distances = torch.zeros_like(lse) if "alibi_slopes" in wanted else None
    if o.numel() == 0 or inputs.k.numel() == 0:
        # No probability anywhere; o is 0, and lse is the sink or nothing.
        delta = torch.zeros_like(lse) if grad_lse is None else -grad_lse
        gradients = {name: gradient.zero_() for name, gradient in gradients.items()}
    else:
        grads = grad_o, grad_lse
        unit = "tensor" if kernel == "tensor" else "simdgroup"
        how = unit, pinned
        _launch_all(problem, inputs, (o, lse), grads, (delta, distances), gradients, how)
    if "sinks" in wanted:
        assert inputs.sinks is not None
        gradients["sinks"] = sink_gradient(inputs.sinks, lse, delta)
    if distances is not None:
        gradients["alibi_slopes"] = _slope_gradient(problem, inputs, distances)
    return Gradients(**{name: gradients[name] for name in wanted})


def _launch_all(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    results: tuple[Tensor, Tensor],
    grad_results: tuple[Tensor, Tensor | None],
    sums: tuple[Tensor, Tensor | None],
    gradients: dict[str, Tensor],
    how: tuple[str, Pinned],
) -> None:
    runtime = runtime_for(problem.device)
    if runtime is None:
        raise RuntimeError(f"flashmetal: {refuse_backward(problem)}")
    if sums[1] is not None:  # the kernel of q's gradient makes them
        gradients = {"q": inputs.q.new_empty(inputs.q.shape), **gradients}
    if "k" in gradients or "v" in gradients:  # one kernel: what is not wanted is made all the same
        made = {"k": inputs.k.new_empty(inputs.k.shape), "v": inputs.v.new_empty(inputs.v.shape)}
        gradients = {**made, **gradients}
    operands = (
        *inputs,
        *results,
        *(None, None),  # the shares of a decode
        *grad_results,
        sums[0],
        *(gradients.get(name) for name in ("q", "k", "v", "bias")),
        sums[1],
    )
    addresses = 0
    for name in ("q", "k", "v"):
        addresses |= getattr(inputs, name).data_ptr()
        addresses |= gradients[name].data_ptr() if name in gradients else 0
    q, k, v, bias = inputs[:4]
    geometry = Geometry(
        q.stride(),
        k.stride(),
        v.stride(),
        None if bias is None else bias.stride(),
        q.shape[-3],
        grad_results[0].stride(),
        rows_k=k.shape[-3],
    )
    addresses = (addresses | grad_results[0].data_ptr()) % WIDEST_LOAD
    extras = grad_results[1] is not None, sums[1] is not None
    wanted = tuple(name for name in ("q", "k", "bias") if name in gradients)
    for launch in _launches(problem, geometry, addresses, extras, wanted, runtime, *how):
        launch.run(operands)


@lru_cache(maxsize=4096)
def _launches(
    problem: AttentionProblem,
    geometry: Geometry,
    addresses: int,
    extras: tuple[bool, bool],
    wanted: tuple[str, ...],
    runtime: Runtime,
    unit: str,
    pinned: Pinned,
) -> tuple[Launch, ...]:
    """Delta, which the others need, then a launch for each of q, k (with v) and bias in wanted.

    ``extras``: whether lse has a gradient, and whether the slopes want one.
    """
    # Queries, keys and values take each other's part: what one can be loaded by, all are.
    every = Addresses(addresses, addresses, addresses)
    loads = Loads(*[min(loads_of(problem, geometry, every))] * 3)
    scalars = pack_backward_integers(problem, geometry), pack_scalars(problem)
    sequences = problem.batch if problem.layout == "dense" else 1
    rows = -(-geometry.rows_q // _DELTA_SIMDGROUPS)
    # A packed call may say longer sequences than there are.
    bounded = problem._replace(
        seqlen_q=min(problem.seqlen_q, geometry.rows_q),
        seqlen_k=min(problem.seqlen_k, geometry.rows_k),
    )
    delta = variant_of(problem, "attention_backward_delta", None, loads)
    delta = delta._replace(has_grad_lse=extras[0])
    variants = {"delta": delta}
    for name in wanted:
        variant = backward_variant(problem, name, loads, runtime, unit, pinned)
        variants[name] = variant._replace(has_slope_gradient=name == "q" and extras[1])
    pinned = tuple((_TILES[x], Choice(v.tile)) for x, v in variants.items() if v.tile is not None)
    prove = partial(prove_backward, problem, loads, unit, wanted, extras, pinned)
    runtime.require(tuple(variants.values()), prove, _launches.cache_clear)
    launches: list[Launch] = []
    for name, variant in variants.items():
        groups, threads = (rows, problem.heads_q, sequences), 32 * _DELTA_SIMDGROUPS
        work, blocks = 0, None
        if variant.tile is not None:
            found = problem if name == "bias" else bounded  # a bias has all of its gradient
            groups, threads = _groups(found, name, variant.tile), variant.tile.threads
            work = _work(found, name, variant.tile)
            if name != "bias":
                packed = geometry.rows_q if name == "q" else geometry.rows_k
                blocks = packed_blocks(problem, packed, variant.tile.owned)
        launch = Launch.of(runtime, variant, scalars, groups, threads, work=work, blocks=blocks)
        launches.append(launch)
    return tuple(launches)


def prove_backward(
    problem: AttentionProblem,
    loads: Loads,
    unit: str,
    names: tuple[str, ...],
    extras: tuple[bool, bool],
    pinned: Pinned,
) -> None:
    """AssertionError where the gradients of a small problem like this one are wrong."""
    small, inputs = small_call(problem, loads)
    on_cpu = small._replace(device="cpu", tf32=small.tf32 and unit == "tensor")
    o, lse = attention_reference(on_cpu, inputs._make(x if x is None else x.cpu() for x in inputs))
    o, lse = (x.detach().to(problem.device).contiguous() for x in (o, lse))
    grad_o, grad_lse = make_output_gradients(o, lse, through_lse=extras[0])
    made = {*names, *(["v"] if "k" in names else []), *(["alibi_slopes"] if extras[1] else [])}
    wanted = tuple(name for name in differentiable(inputs) if name in made)
    rows = QueryRows(o, lse, grad_o, grad_lse)
    found = backward(small, inputs, rows, wanted, unit, pinned)
    assert_gradients_match_reference(found, on_cpu, inputs, grad_o, grad_lse)


def backward_variant(
    problem: AttentionProblem, name: str, loads: Loads, runtime: Runtime, unit: str, pinned: Pinned
) -> KernelVariant:
    """The kernel for the gradient of "q", of "k" and v together, or of "bias"."""
    layout = layout_of(runtime, problem.dtype, problem.tf32) if unit == "tensor" else ""
    tile = choose_tile(problem, _TILES[name], unit, runtime, layout, pinned).tile
    kernel = "attention_backward_" + {"q": "q", "k": "kv", "bias": "bias"}[name]
    return variant_of(problem, kernel, tile, loads)._replace(layout=layout)


def _groups(problem: AttentionProblem, name: str, tile: Tile) -> tuple[int, int, int]:
    """Threadgroups: one a block of owned rows, or a tile of the gradient of bias."""
    owned, streamed = tile.owned, tile.streamed
    if name == "q":
        return -(-problem.seqlen_q // owned), problem.heads_q, problem.batch
    if name == "k":
        return -(-problem.seqlen_k // owned), problem.heads_k, problem.batch
    assert problem.bias is not None
    one_batch, one_head, one_row = problem.bias
    blocks = 1 if one_row else -(-problem.seqlen_q // owned)
    heads = (1 if one_batch else problem.batch) * (1 if one_head else problem.heads_q)
    return -(-problem.seqlen_k // streamed), blocks, heads


def _work(problem: AttentionProblem, name: str, tile: Tile) -> int:
    """Multiply-adds of one of these threadgroups."""
    if name == "q":
        return work_of(problem, tile.owned, problem.seqlen_k, 3)
    if name == "k":
        group = problem.heads_q // problem.heads_k
        return group * work_of(problem, tile.owned, problem.seqlen_q, 4)
    assert problem.bias is not None
    one_batch, one_head, one_row = problem.bias
    visits = (problem.batch if one_batch else 1) * (problem.heads_q if one_head else 1)
    return visits * work_of(problem, tile.streamed, problem.seqlen_q if one_row else tile.owned, 2)


def _slope_gradient(
    problem: AttentionProblem, inputs: AttentionInputs, distances: Tensor
) -> Tensor:
    """Minus the sum over rows, for each head, or for each sequence and head."""
    if distances.ndim == 3:
        return -distances.sum(-1 if problem.alibi == "batch_head" else (0, 2))
    if problem.alibi == "head":
        return -distances.sum(-1)
    assert inputs.cu_seqlens_q is not None
    rows = torch.arange(distances.shape[1], device=distances.device)
    starts = inputs.cu_seqlens_q[:, None]
    inside = (rows >= starts[:-1]) & (rows < starts[1:])  # a product, for index_add_ is atomic
    return -(inside.float() @ distances.T)
