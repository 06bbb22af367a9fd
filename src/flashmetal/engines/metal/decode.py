"""The decode kernel: few queries over many keys, split over keys, and the sum of its shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from torch import Tensor

from ...problem import AttentionProblem
from .launch import Addresses, Launch, loads_of, work_of
from .params import Geometry, pack_integers, pack_scalars
from .runtime import Runtime
from .tile_choice import Choice, Pinned, choose_tile
from .tiles import MOST_SPLITS, splits_of
from .variant import KernelVariant, Loads, variant_of

_COMBINE_SIMDGROUPS = 4
Prove = Callable[[AttentionProblem, Loads, str, Pinned], None]


def decode(
    problem: AttentionProblem,
    operands: tuple[Tensor | None, ...],
    geometry: Geometry,
    addresses: Addresses,
    runtime: Runtime,
    prove: Prove,
    pinned: Pinned,
) -> None:
    """Launch the decode, and the combination of its splits; ``operands`` end with o and lse.

    ``prove`` runs the kernel on a small problem, at the first use of a variant.
    """
    launches, splits = _launches(problem, geometry, addresses, runtime, prove, pinned)
    if splits == 1:
        launches[0].run(operands)
        return
    o, lse = operands[-2:]
    assert o is not None
    assert lse is not None
    # Not kept between calls: two threads would write into one workspace. torch caches the memory.
    partial_o = lse.new_empty((splits, *o.shape))
    partial_lse = lse.new_empty((splits, *o.shape[:-1]))
    for launch in launches:
        launch.run((*operands, partial_o, partial_lse))


@lru_cache(maxsize=4096)
def _launches(
    problem: AttentionProblem,
    geometry: Geometry,
    addresses: Addresses,
    runtime: Runtime,
    prove: Prove,
    pinned: Pinned,
) -> tuple[tuple[Launch, ...], int]:
    loads = loads_of(problem, geometry, addresses)
    choice = choose_tile(problem, "decode", "simdgroup", runtime, pinned=pinned)
    tile, variant = choice.tile, _variant(problem, loads, choice)
    blocks = -(-problem.seqlen_q * variant.group // tile.rows)
    groups, cores = blocks * problem.heads_k * problem.batch, runtime.gpu.cores
    splits = problem.num_splits or splits_of(cores, groups, problem.seqlen_k, choice.split)
    splits = min(splits, MOST_SPLITS)
    variant = variant._replace(is_split=splits > 1)
    scalars = pack_integers(problem, geometry, splits), pack_scalars(problem)
    combine = variant_of(problem, "attention_combine", None, Loads())
    split = problem._replace(num_splits=2 if splits > 1 else 1)
    variants = (variant, combine) if splits > 1 else (variant,)
    proof = partial(prove, split, loads, "decode", (("decode", choice),))
    runtime.require(variants, proof, _launches.cache_clear)
    grid = blocks * splits, problem.heads_k, problem.batch
    work = work_of(problem, tile.rows, -(-problem.seqlen_k // splits), 2)
    decode = Launch.of(runtime, variant, scalars, grid, tile.threads, work=work)
    if splits == 1:
        return (decode,), 1
    sequences = problem.batch if problem.layout == "dense" else 1
    rows = -(-sequences * geometry.rows_q * problem.heads_q // _COMBINE_SIMDGROUPS)
    return (
        decode,
        Launch.of(runtime, combine, scalars, (rows, 1, 1), 32 * _COMBINE_SIMDGROUPS),
    ), splits


def _variant(problem: AttentionProblem, loads: Loads, choice: Choice) -> KernelVariant:
    variant = variant_of(problem, "attention_decode", choice.tile, loads)
    return variant._replace(group=problem.heads_q // problem.heads_k, packs_heads=True)
