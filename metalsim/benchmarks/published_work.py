"""The work of published attention kernels, from what their authors say of them."""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import NamedTuple

from metalsim.timing import Work
from metalsim.timing.tables import read_table

_DIRECTORY = Path(__file__).parent
_LANES = 32
_WORKING_REGISTERS = 24
_SOFTMAX_CYCLES = 5
"""Of floating point, a score: two steps of a maximum, two of a sum, a difference."""
_SHUFFLE_CYCLES = 4
"""A score of kernels that reduce each 8x8 fragment: two shuffles of 2 cycles for the maximum and
two for the sum, over the two scores of a lane."""
_CONVERSION_CYCLES = 0.5
"""An element that becomes a float on its way to a multiply: an estimate."""
_MOST_ACCUMULATORS = 8
"""Of 8x8 floats that leave Apple7 registers to load ahead (llama.cpp#10982: half the speed with
more)."""
_STEP = 16 * 32
"""Elements of K or V in a step of matmul2d, of which four of Q K' are loaded at once (mlx#3843)."""
_VECTOR_FLOATS = 6
"""A key of a query head, whatever D: maximum, two differences, two factors of log2(e), sum."""
_GEMM_ROWS = 32
"""And columns of a simdgroup of MLX's matrix product; 64 a threadgroup."""


class Kernel(NamedTuple):
    """A row of published_kernels.txt."""

    name: str
    unit: str
    rows: int
    block_k: int
    simdgroups: int
    team: int
    query_reads: int
    load_width: int
    staged: bool
    converted: bool
    fenced: bool
    held: int
    shuffled: bool
    extra_bytes: float
    group_bytes: int
    group_bytes_of_floats: int
    source: str

    @property
    def block_q(self) -> int:
        return self.rows * self.simdgroups // self.team


class Vector(NamedTuple):
    """A kernel with a simdgroup for each query head and part of the keys."""

    apart: bool
    """Whether the heads of a key head are in threadgroups of their own."""
    queries: int
    """That share what is loaded of a key."""
    element_cycles: int
    """Instructions for each element of a lane, a key."""
    cycles: float
    """Of the others, a key."""
    exponentials: int
    """Of lanes, a key."""


VECTORS = {
    # A multiply-add for Q K', and two for O, which each key rescales (mlx sdpa_vector.h); then
    # simd_sum, two loads, two 64-bit pointers and the loop, at metal-benchmarks' costs.
    "vector": Vector(False, 1, 3, _VECTOR_FLOATS + 14.5 + 2 + 2 * 4.7 + 3, 2 * _LANES),
    # Four keys at a time in groups of lanes, softmax once for 32 (ggml-metal.metal).
    "vector-apart": Vector(True, 1, 2, 8, 1),
    "vector-apart-2": Vector(True, 2, 2, 8, 1),
}


class Problem(NamedTuple):
    """One call: sizes, and bytes an element."""

    element_bytes: int
    batch: int
    heads: int
    heads_k: int
    queries: int
    keys: int
    head_dim: int
    causal: bool

    @property
    def scores(self) -> float:
        return float(self.batch * self.heads * self.queries * self.keys)

    @property
    def unique_bytes(self) -> float:
        """Of Q, K, V and O."""
        rows = 2 * self.heads * self.queries + 2 * self.heads_k * self.keys
        return float(self.batch * rows * self.head_dim * self.element_bytes)


@functools.cache
def kernels() -> dict[str, Kernel]:
    """Every row of published_kernels.txt, by name."""
    return {row.name: row for row in read_table(_DIRECTORY / "published_kernels.txt", Kernel)}


def launches(problem: Problem, kernel: str, family: int) -> list[Work]:
    """The launches of a call on a chip of a family, one after the other."""
    if kernel == "unfused":
        return unfused_work(problem, family)
    if kernel in VECTORS:
        return [vector_work(problem, VECTORS[kernel], family)]
    return [tile_work(problem, kernels()[kernel], family)]


def visited_scores(problem: Problem, kernel: Kernel) -> float:
    """Scores of the blocks that are visited, rows without a query included."""
    blocks_q = -(-problem.queries // kernel.block_q)
    columns = float(blocks_q * problem.keys)
    if problem.causal:
        first = problem.keys - problem.queries + kernel.block_q
        ends = range(first, first + blocks_q * kernel.block_q, kernel.block_q)
        columns = float(sum(min(_up(end, kernel.block_k), problem.keys) for end in ends))
    return columns * problem.batch * problem.heads * kernel.block_q


def tile_work(problem: Problem, kernel: Kernel, family: int) -> Work:
    """A forward kernel that goes over the keys in blocks, by quantities a score.

    An operand element is loaded 2 D / rows times a score, plus D / block_k for a Q that is read
    again. Staged operands are stored once a threadgroup, by single elements.
    """
    dim, size = problem.head_dim, problem.element_bytes
    scores = visited_scores(problem, kernel)
    elements = 2 * dim / kernel.rows + kernel.query_reads * dim / kernel.block_k
    shared = 2 * dim / kernel.block_q
    converted = elements * (kernel.converted and size == 2)
    floats = _SOFTMAX_CYCLES + dim / kernel.block_k + _CONVERSION_CYCLES * converted
    others = elements / kernel.load_width + kernel.staged * shared
    others += kernel.shuffled * _SHUFFLE_CYCLES
    work = Work(
        threadgroups=problem.batch * problem.heads * -(-problem.queries // kernel.block_q),
        simdgroups=kernel.simdgroups,
        matrix_multiply_adds=scores * 2 * dim * (kernel.unit == "matrix"),
        tensor_multiply_adds=scores * 2 * dim * (kernel.unit != "matrix"),
        issue_cycles=scores * (floats + others) / _LANES,
        float_cycles=scores * floats / _LANES,
        exponentials=scores * (1 + 1 / kernel.block_k),
        l1_bytes=scores * (size * (elements + kernel.staged * shared) + kernel.extra_bytes),
        l2_bytes=scores * size * shared,
        dram_bytes=problem.unique_bytes,
        threadgroup_bytes=kernel.group_bytes if size == 2 else kernel.group_bytes_of_floats,
        registers=kernel.rows * (dim // kernel.team + kernel.block_k) // _LANES
        + _WORKING_REGISTERS,
    )
    blocks = scores * kernel.team / (kernel.rows * kernel.block_k)
    if kernel.unit == "matrix":
        return _matrix_waits(work, blocks, dim, kernel, family)
    return _tensor_waits(work, blocks, problem, kernel)


def _matrix_waits(work: Work, blocks: float, dim: int, kernel: Kernel, family: int) -> Work:
    """With the waits of `blocks` of keys, of all simdgroups: each fragment of Q' with its row of K,
    and each fragment of V that cannot be loaded ahead; staging, between four barriers."""
    across = dim // 8
    starved = family <= 8 and (kernel.held or dim) // 8 > _MOST_ACCUMULATORS
    values = across * kernel.block_k / 8 if kernel.fenced or starved else 1
    return work._replace(
        load_waits=blocks * (across + values),
        l2_waits=blocks * 2 * kernel.staged,
        barriers=blocks / kernel.simdgroups * 4 * kernel.staged,
    )


def _tensor_waits(work: Work, blocks: float, problem: Problem, kernel: Kernel) -> Work:
    """With the waits of `blocks` of keys, of all simdgroups: for each step of V and for four of K,
    or for one product of the whole threadgroup each. From DRAM if no other rows read them."""
    steps = problem.head_dim / kernel.team * kernel.block_k / _STEP
    waits = blocks * (2 if kernel.unit == "group" else steps / 4 + steps)
    barriers = 4 if kernel.unit == "group" else 2 * (kernel.team > 1)
    once = problem.queries <= kernel.block_q
    return work._replace(
        l2_waits=0 if once else waits,
        dram_waits=waits if once else 0,
        barriers=blocks / kernel.simdgroups * barriers,
    )


def vector_work(problem: Problem, kernel: Vector, family: int) -> Work:
    """One simdgroup a query head and a part of the keys: each lane has D / 32 elements of Q and O.

    The heads of a threadgroup find each other's keys in L1, but for the 8 KB of it of Apple7 and 8.
    """
    pairs, elements = problem.scores, problem.head_dim / _LANES
    loaded = pairs * 2 * problem.head_dim * problem.element_bytes / kernel.queries
    shared = not kernel.apart and family > 8
    return Work(
        threadgroups=max(int(pairs) // 256, 1),
        simdgroups=1,
        issue_cycles=pairs * (kernel.element_cycles * elements + kernel.cycles),
        float_cycles=pairs * (kernel.element_cycles * elements + _VECTOR_FLOATS),
        exponentials=pairs * kernel.exponentials,
        l1_bytes=loaded,
        l2_bytes=problem.unique_bytes if shared else loaded,
        dram_bytes=problem.unique_bytes,
        registers=int(4 * elements) + _WORKING_REGISTERS,
        launches=2,
    )


def unfused_work(problem: Problem, family: int) -> list[Work]:
    """Q K', softmax and P V, each from memory to memory."""
    scores, size = problem.scores, problem.element_bytes
    multiply_adds = scores * problem.head_dim
    elements = multiply_adds * 2 / _GEMM_ROWS
    converted = _CONVERSION_CYCLES * elements * (size == 2 and family < 10)
    product = Work(
        threadgroups=math.ceil(scores / (2 * _GEMM_ROWS) ** 2),
        simdgroups=4,
        matrix_multiply_adds=multiply_adds * (family < 10),
        tensor_multiply_adds=multiply_adds * (family >= 10),
        issue_cycles=(elements / 2 + converted) / _LANES,
        float_cycles=converted / _LANES,
        l1_bytes=size * elements,
        l2_bytes=size * elements / 2,
        dram_bytes=problem.unique_bytes / 2 + size * scores,
    )
    softmax = Work(
        threadgroups=math.ceil(scores / problem.keys),
        simdgroups=8,
        issue_cycles=scores * _SOFTMAX_CYCLES / _LANES,
        float_cycles=scores * _SOFTMAX_CYCLES / _LANES,
        exponentials=scores,
        l1_bytes=2 * size * scores,
        l2_bytes=2 * size * scores,
        dram_bytes=2 * size * scores,
    )
    return [product, softmax, product]


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
