"""The decode kernel: few queries over many keys, split over keys, and the sum of its shares."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial

from torch import Tensor

from ...problem import AttentionProblem
from ...tiles import MOST_SPLITS, splits_of, tile_of
from .launch import Addresses, Launch, loads_of
from .params import Geometry, pack_integers, pack_scalars
from .runtime import Runtime
from .variant import KernelVariant, Loads, variant_of

_COMBINE_SIMDGROUPS = 4


def decode(
    problem: AttentionProblem,
    operands: tuple[Tensor | None, ...],
    geometry: Geometry,
    addresses: Addresses,
    runtime: Runtime,
    prove: Callable[[AttentionProblem, Loads, str], None],
) -> None:
    """Launch the decode, and the combination of its splits; ``operands`` end with o and lse.

    ``prove`` runs the kernel on a small problem, at the first use of a variant.
    """
    launches, splits = _launches(problem, geometry, addresses, runtime, prove)
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
    prove: Callable[[AttentionProblem, Loads, str], None],
) -> tuple[tuple[Launch, ...], int]:
    loads = loads_of(problem, geometry, addresses)
    variant = decode_variant(problem, loads, runtime.gpu.family)
    assert variant.tile is not None
    blocks = -(-problem.seqlen_q * variant.group // variant.tile.rows)
    groups = blocks * problem.heads_k * problem.batch
    splits = problem.num_splits or splits_of(runtime.gpu.cores, groups, problem.seqlen_k)
    splits = min(splits, MOST_SPLITS)
    variant = variant._replace(is_split=splits > 1)
    scalars = pack_integers(problem, geometry, splits), pack_scalars(problem)
    combine = variant_of(problem, "attention_combine", None, Loads())
    split = problem._replace(num_splits=2 if splits > 1 else 1)
    variants = (variant, combine) if splits > 1 else (variant,)
    runtime.require(variants, partial(prove, split, loads, "decode"))
    assert variant.tile is not None
    grid = blocks * splits, problem.heads_k, problem.batch
    decode = Launch.of(runtime, variant, scalars, grid, variant.tile.threads)
    if splits == 1:
        return (decode,), 1
    sequences = problem.batch if problem.layout == "dense" else 1
    rows = -(-sequences * geometry.rows_q * problem.heads_q // _COMBINE_SIMDGROUPS)
    return (
        decode,
        Launch.of(runtime, combine, scalars, (rows, 1, 1), 32 * _COMBINE_SIMDGROUPS),
    ), splits


def decode_variant(problem: AttentionProblem, loads: Loads, family: int) -> KernelVariant:
    """The compile-time facts of the decode kernel for ``problem`` on an Apple GPU ``family``."""
    group = problem.heads_q // problem.heads_k
    sizes = problem.dtype.itemsize, problem.head_dim, problem.head_dim_v
    tile = tile_of("decode", family, *sizes)
    if problem.seqlen_q * group <= 8:
        tile = tile._replace(rows=8)
    variant = variant_of(problem, "attention_decode", tile, loads)
    return variant._replace(group=group, packs_heads=True)
