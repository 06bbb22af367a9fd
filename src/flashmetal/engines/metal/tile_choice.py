"""Which tile a Metal kernel runs with: this is the one place where it is chosen.

A row measured on this machine (``flashmetal tune``) comes first, then a row of tiles.txt for the
GPU's family. The tile of a row for any size is made smaller where it would leave cores idle.
"""

from __future__ import annotations

from typing import NamedTuple

from ...problem import AttentionProblem
from .runtime import Runtime, runtime_for
from .tiles import LARGEST_TILE, THREADGROUP_BYTES, Row, Tile, row_of, threadgroup_bytes


class Choice(NamedTuple):
    """A tile, the keys that a split of a decode has at least, and where they come from."""

    tile: Tile
    split: int = 0
    origin: str = ""

    def __str__(self) -> str:
        tile = self.tile
        teams = f" in teams of {tile.team}" if tile.team > 1 else ""
        return (
            f"{tile.simdgroups} simdgroups{teams}, {tile.rows} rows by {tile.streamed} "
            f"({self.origin})"
        )


Pinned = tuple[tuple[str, Choice], ...]  # choices by kernel, made by the caller


class Work(NamedTuple):
    """What the threadgroups of a kernel share among them: rows of so many heads of each sequence.

    Of packed sequences all count as long as the longest: the host does not know their lengths.
    """

    rows: int
    heads: int
    batch: int

    @classmethod
    def of(cls, problem: AttentionProblem, kernel: str) -> Work:
        if kernel == "grad kv":
            return cls(problem.seqlen_k, problem.heads_k, problem.batch)
        if kernel == "decode":
            group = problem.heads_q // problem.heads_k
            return cls(problem.seqlen_q * group, problem.heads_k, problem.batch)
        return cls(problem.seqlen_q, problem.heads_q, problem.batch)

    def threadgroups(self, owned: int) -> int:
        """How many threadgroups of ``owned`` rows do it."""
        return -(-self.rows // owned) * self.heads * self.batch

    def size(self, cores: int) -> str:
        """ "small" or "large", as the head of tiles.txt says."""
        return "small" if self.threadgroups(LARGEST_TILE) < cores else "large"


def choose_tile(
    problem: AttentionProblem,
    kernel: str,
    unit: str,
    runtime: Runtime,
    layout: str = "",
    pinned: Pinned = (),
) -> Choice:
    """The tile of ``kernel`` (forward, decode, grad q, grad kv) for a call.

    ``unit`` is what multiplies, ``layout`` that of cooperative tensors. What is ``pinned`` is taken
    as it is.
    """
    work, cores = Work.of(problem, kernel), runtime.gpu.cores
    sizes = problem.dtype.itemsize, problem.head_dim, problem.head_dim_v
    choice = dict(pinned).get(kernel)
    if choice is None:
        row = _measured(runtime.measured_rows, kernel, unit, sizes, work.size(cores))
        if row is not None:
            choice = Choice(row.tile, row.split, row.origin)
        else:
            row = row_of(kernel, runtime.gpu.family, *sizes, unit, work.size(cores))
            choice = Choice(row.tile, row.split, f"tiles.txt: {row.origin}")
        tile = _fitted(row, work, cores)
        if tile != choice.tile:
            choice = choice._replace(tile=tile, origin=f"{choice.origin}, cut for so few rows")
    if layout == "unknown":  # each simdgroup passes fragments through memory: one team fits
        choice = choice._replace(tile=choice.tile._replace(simdgroups=choice.tile.team))
    return choice


def tiles_of(problem: AttentionProblem, kernel: str, backward: bool) -> dict[str, Choice]:
    """The tiles of one of the Metal kernels and, with ``backward``, of its gradients, by name."""
    runtime = runtime_for(problem.device)
    if runtime is None:
        return {}
    unit = "tensor" if kernel == "tensor" else "simdgroup"
    names = [] if kernel == "scalar" else ["decode" if kernel == "decode" else "forward"]
    names += ["grad q", "grad kv"] if backward else []
    return {name: choose_tile(problem, name, unit, runtime) for name in names}


def _measured(
    rows: tuple[Row, ...], kernel: str, unit: str, sizes: tuple[int, int, int], size: str
) -> Row | None:
    """The first row measured for such a problem; one that does not fit these head dims is none."""
    key = kernel, unit, 8 * sizes[0], max(sizes[1:])
    for row in rows:
        if (row.kernel, row.tile.unit, row.bits, row.head_dim) == key and row.size in ("any", size):
            fits = threadgroup_bytes(kernel, row.tile, *sizes) <= THREADGROUP_BYTES
            return row if fits else None
    return None


def _fitted(row: Row, work: Work, cores: int) -> Tile:
    tile = row.tile
    if row.kernel == "decode":  # its simdgroups share the keys, and splits fill the cores
        return tile._replace(rows=tile.rows // 2) if tile.rows == 16 and work.rows <= 8 else tile
    while row.size == "any" and work.threadgroups(tile.owned) < cores:
        smaller = tile.halved()
        if smaller is None:
            break
        tile = smaller
    return tile
