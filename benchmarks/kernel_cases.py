"""Which kernels meet which workloads, and what each does at full size, from short launches."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from kernel_counters import Recorder
from kernel_launches import Kernel, Launched, launched, plain_kernel
from kernel_steps import Shape, Steps, extension, steps_of

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.engines.metal.kernel_choice import TENSOR_FAMILY, needs_exact_products
from flashmetal.engines.metal.tile_choice import Choice, choose_tile
from flashmetal.engines.metal.tiles import (
    DECODE_QUERIES,
    MOST_SPLITS,
    Tile,
    most_head_dim,
    registers,
    splits_of,
    tile_of,
)
from flashmetal.problem import AttentionProblem
from flashmetal.reference import attention_reference
from flashmetal.testing import assert_matches_reference, make_inputs
from flashmetal.tools.bench.workloads import Workload

_LINE_BYTES = 128
_MOST_PLAIN = 256
FAMILIES = (7, 9)  # one of each table of tiles


class Facts(NamedTuple):
    """What a kernel is compiled for, beside its tile and the sides of its window.

    Half stands for bfloat too, which does the same work.
    """

    dtype: torch.dtype
    head_dim: int
    head_dim_v: int
    softcap: float
    sinks: bool
    alibi: bool
    is_packed: bool

    @classmethod
    def of(cls, workload: Workload) -> Facts:
        if workload.bias:
            raise ValueError(f"{workload.name}: a bias is not among what the short launches have")
        return cls(
            torch.float32 if workload.dtype == "float32" else torch.float16,
            workload.head_dim,
            workload.head_dim_v,
            workload.softcap,
            workload.sinks,
            workload.alibi,
            workload.lengths_q is not None,
        )

    @property
    def heads(self) -> int:
        """After which heads lie on lines of memory in the same way again."""
        sizes = [dim * self.dtype.itemsize for dim in (self.head_dim, self.head_dim_v)]
        return math.lcm(*(_LINE_BYTES // math.gcd(_LINE_BYTES, size) for size in sizes))


class Done(NamedTuple):
    """What one kernel does for a whole workload."""

    kernel: Kernel
    counters: dict[str, int]
    threads: tuple[int, int, int]
    group: tuple[int, int, int]
    threadgroup_bytes: int
    registers: int
    masked_pairs: int
    visits: int
    """By simdgroups, of blocks of keys."""
    simulated: list[Shape]
    error: float
    """The largest of the output in those launches."""
    element_bytes: int
    launches: int = 1
    chip: str | None = None
    """The chip whose number of splits it has; None: the same on all."""


def is_decode(workload: Workload) -> bool:
    """Whether the product's decode kernel takes it."""
    return workload.seqlen_q <= DECODE_QUERIES and workload.seqlen_q < workload.seqlen_k


def kernels_of(workload: Workload, chips: Sequence[str]) -> list[Kernel]:
    """Every forward tile of tiles.txt that holds the head dimensions, the plain kernel last.

    Of few queries, which the decode kernel takes, the plain kernel alone.
    """
    size, dim = Facts.of(workload).dtype.itemsize, max(workload.head_dim, workload.head_dim_v)
    plain: list[Kernel] = []
    if dim <= _MOST_PLAIN:
        plain = [plain_kernel(size, workload.head_dim, workload.head_dim_v)]
    if is_decode(workload):
        return plain
    tiles = dict.fromkeys(served_tile(workload, chip) for chip in chips)
    for unit in ("simdgroup", "tensor"):
        for family in FAMILIES:
            for held in range(dim, most_head_dim("forward", unit) + 1, 8):
                tiles[tile_of("forward", family, size, held, held, unit)] = None
    return [*(Kernel(name_of(tile), tile) for tile in tiles), *plain]


def served_tile(workload: Workload, chip: str) -> Tile:
    """The forward tile that the plan takes on a chip."""
    gpu = Gpu.named(chip)
    problem = problem_of(workload)
    has_tensors = gpu.family >= TENSOR_FAMILY and not needs_exact_products(problem)
    unit = "tensor" if has_tensors else "simdgroup"
    runtime = Runtime(metalsim.compile_shader, "cpu", gpu)
    return choose_tile(problem, "forward", unit, runtime).tile


def problem_of(workload: Workload) -> AttentionProblem:
    """What the plan sees of a workload, without its tensors."""
    facts = Facts.of(workload)
    sizes = {"head_dim": facts.head_dim, "head_dim_v": facts.head_dim_v, "dtype": facts.dtype}
    problem, _ = make_inputs(seqlen_q=1, **sizes)
    names = ("batch", "seqlen_q", "seqlen_k", "heads_q", "heads_k")
    return problem._replace(**{name: getattr(workload, name) for name in names})


def name_of(tile: Tile) -> str:
    """For people: rows and keys of a block, and what is special."""
    words = [f"{tile.unit} {tile.owned}x{tile.streamed}", f"{tile.rows} rows a simdgroup"]
    if tile.team > 1:
        words.append(f"teams of {tile.team}")
    words.append("q kept" if tile.owned_in_registers else "q read again")
    return ", ".join([*words, *([] if tile.staged else ["direct"])])


class Bench:
    """Counts short launches, each once."""

    def __init__(self) -> None:
        self._recorder = Recorder()
        self._decoded: dict[tuple[Workload, int, Tile], tuple[list[dict[str, Any]], float]] = {}
        self._counted: dict[tuple[Kernel, Facts, Shape], Launched] = {}

    def forward(self, workload: Workload, kernel: Kernel) -> Done:
        """A forward kernel on a whole workload, extended from short launches."""
        facts, tile = Facts.of(workload), kernel.tile
        total, steps, simulated, error = Counter[str](), Steps(), set[Shape](), 0.0
        group_bytes = 0
        for shape, number in _sequences(workload).items():
            made = extension(shape, tile)
            counted = {
                short: self.count(kernel, facts, short) for short in (*made.shapes, made.check)
            }
            counters = made.counters({short: found.counters for short, found in counted.items()})
            times = number * workload.heads_q
            total.update({k: n * times // facts.heads for k, n in counters.items()})
            steps.update({step: n * times for step, n in steps_of(shape, tile).items()})
            simulated |= set(counted)
            group_bytes = max(found.threadgroup_bytes for found in counted.values())
            error = max(error, *(found.error for found in counted.values()))
        blocks = -(-max(shape.seqlen_q for shape in _sequences(workload)) // tile.owned)
        sizes = facts.dtype.itemsize, facts.head_dim, facts.head_dim_v
        return Done(
            kernel,
            dict(total),
            (blocks * tile.threads, workload.heads_q, workload.batch),
            (tile.threads, 1, 1),
            group_bytes,
            _plain_registers(tile, *sizes)
            if kernel.is_plain
            else registers("forward", tile, *sizes),
            steps["masked",] * tile.rows * tile.streamed,
            sum(n for step, n in steps.items() if step[0] == "visible") * tile.team,
            sorted(simulated),
            error,
            sizes[0],
        )

    def count(self, kernel: Kernel, facts: Facts, shape: Shape) -> Launched:
        """One short launch: `facts.heads` heads of one sequence."""
        key = kernel, facts, shape
        if key not in self._counted:
            packed = {"lengths_q": [shape.seqlen_q], "lengths_k": [shape.seqlen_k]}
            problem, inputs = make_inputs(
                **shape._asdict(),
                **(packed if facts.is_packed else {}),
                heads_q=facts.heads,
                head_dim=facts.head_dim,
                head_dim_v=facts.head_dim_v,
                dtype=facts.dtype,
                softcap=facts.softcap,
                sinks=facts.sinks,
                alibi=facts.alibi,
            )
            self._counted[key] = launched(kernel, problem, inputs, self._recorder)
        return self._counted[key]

    def decode(self, workload: Workload, chip: str) -> Done:
        """The decode kernel on a chip: one key head at full length is simulated, all count."""
        gpu, group = Gpu.named(chip), workload.heads_q // workload.heads_k
        facts, times = Facts.of(workload), workload.heads_k * workload.batch
        runtime = Runtime(self._recorder.compile_shader, "cpu", gpu)
        choice = choose_tile(problem_of(workload), "decode", "simdgroup", runtime)
        tile = choice.tile
        blocks = -(-workload.seqlen_q * group // tile.rows)
        splits = min(
            splits_of(gpu.cores, blocks * times, workload.seqlen_k, choice.split), MOST_SPLITS
        )
        dtype = str(facts.dtype).removeprefix("torch.")
        one = workload._replace(name="", batch=1, heads_q=group, heads_k=1, dtype=dtype)
        launches, error = self._split(one, splits, choice, runtime)
        total = Counter[str]()
        for launch in launches:
            total.update({name: number * times for name, number in launch["counters"].items()})
        shape = Shape(*(getattr(workload, name) for name in Shape._fields))
        return Done(
            Kernel(f"decode, {tile.rows} rows, {splits} splits", tile),
            dict(total),
            (blocks * splits * tile.threads, workload.heads_k, workload.batch),
            (tile.threads, 1, 1),
            launches[0]["threadgroup_bytes"],
            registers("decode", tile, facts.dtype.itemsize, *facts[1:3]),
            0,
            total["exponentials"] // (tile.rows * tile.streamed),
            [shape],
            error,
            facts.dtype.itemsize,
            len(launches),
            chip,
        )

    def _split(
        self, one: Workload, splits: int, choice: Choice, runtime: Runtime
    ) -> tuple[list[dict[str, Any]], float]:
        """The launches of a decode of one key head, and the largest error of its output."""
        key = one, splits, choice.tile
        if key not in self._decoded:
            problem, inputs = one.build("cpu")
            split, pinned = problem._replace(num_splits=splits), (("decode", choice),)
            with metal_runtime(runtime):
                o, lse = metal.forward(split, inputs, kernel="decode", pinned=pinned)
            assert_matches_reference(o, lse, problem, inputs)
            exact, _ = attention_reference(problem, inputs, compute_dtype=torch.float64)
            launches = self._recorder.launches[:]
            self._recorder.launches.clear()
            self._decoded[key] = launches, float((o.double() - exact).abs().max())
        return self._decoded[key]


def _sequences(workload: Workload) -> Counter[Shape]:
    """The shapes of the sequences of a workload, and how many have each."""
    windows = workload.window_left, workload.window_right
    lengths: Iterable[tuple[int, int]] = [(workload.seqlen_q, workload.seqlen_k)] * workload.batch
    if workload.lengths_q is not None:
        lengths = zip(workload.lengths_q, workload.lengths_k or workload.lengths_q, strict=True)
    return Counter(Shape(q, k, *windows) for q, k in lengths)


def _plain_registers(tile: Tile, element_bytes: int, head_dim: int, head_dim_v: int) -> int:
    """Estimated 32-bit registers a lane: O in elements, a quarter row of scores, and 24."""
    return -(-head_dim_v // 8) * 2 * element_bytes // 4 + tile.streamed // 4 + 24


def least(workload: Workload) -> dict[str, int]:
    """The multiply-adds and the bytes that no kernel can do without: every visible pair once; q, o
    and lse once, and of k and v the rows that any query sees."""
    pairs = rows_q = rows_k = 0
    for shape, number in _sequences(workload).items():
        begin = max(shape.seqlen_k - shape.seqlen_q - shape.window_left, 0) if shape.has_left else 0
        pairs += shape.pairs() * number
        rows_q += shape.seqlen_q * number
        rows_k += (shape.seqlen_k - begin) * number
    size = getattr(torch, workload.dtype).itemsize
    both = workload.head_dim + workload.head_dim_v
    return {
        "multiply_adds": pairs * both * workload.heads_q,
        "bytes": (rows_q * workload.heads_q + rows_k * workload.heads_k) * both * size
        + rows_q * workload.heads_q * 4,
    }
