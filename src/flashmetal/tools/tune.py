"""The fastest tile of a Metal kernel on one machine: every candidate is proven, then measured."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from functools import partial
from itertools import product
from typing import NamedTuple

import torch

from ..engines import metal
from ..engines.metal.backward import prove_backward
from ..engines.metal.forward import prove_forward
from ..engines.metal.machine_files import machine_name
from ..engines.metal.runtime import Runtime
from ..engines.metal.tile_choice import Choice, Pinned, Work, choose_tile
from ..engines.metal.tiles import (
    LARGEST_TILE,
    THREADGROUP_BYTES,
    Row,
    Tile,
    family_name,
    registers,
    splits_of,
    threadgroup_bytes,
)
from ..engines.metal.variant import Loads
from ..gradients import QueryRows
from ..problem import AttentionProblem
from ..request import AttentionInputs
from ..testing import make_output_gradients

# Estimated registers a lane, beyond which a kernel of the unit would hardly run well. Those of
# tensor operations let 16 rows by 256 columns of O be tried without a team and its exchange.
_MOST_REGISTERS = {"simdgroup": 128, "tensor": 168}
_SPLITS = (256, 512, 1024, 2048, 4096)  # keys a split, of a decode
_WARM_UPS = 2
_LEAST_MS = 5.0  # a measurement, of as many calls as it takes
_HOPELESS = 2.0  # times the best's first time: not measured again

Call = Callable[[], object]
Clock = Callable[[Call], float]  # the milliseconds that a call keeps the device busy


class Outcome(NamedTuple):
    """A candidate's median time of a call, or why it has none."""

    row: Row
    median_ms: float | None
    note: str = ""


class Task(NamedTuple):
    """What is tuned: one kernel of one unit, on a problem that stands for those of its size."""

    problem: AttentionProblem
    inputs: AttentionInputs
    kernel: str
    unit: str

    def call(self, pinned: Pinned) -> Call:
        """One call of the kernel; a gradient's has the launch of delta before it."""
        problem, inputs = self.problem, self.inputs
        if not self.kernel.startswith("grad"):
            name = "decode" if self.kernel == "decode" else self.unit
            return partial(metal.forward, problem, inputs, kernel=name, pinned=pinned)
        o, lse = metal.forward(problem, inputs, kernel=self.unit)
        rows = QueryRows(o, lse, *make_output_gradients(o, lse, through_lse=False))
        wanted = ("q",) if self.kernel == "grad q" else ("k", "v")
        return partial(metal.backward, problem, inputs, rows, wanted, self.unit, pinned)

    def prove(self, pinned: Pinned) -> None:
        """Raise what is wrong with the kernel on a small problem."""
        widest = 16 // self.problem.dtype.itemsize
        loads = Loads(widest, widest, widest)
        if not self.kernel.startswith("grad"):
            name = "decode" if self.kernel == "decode" else self.unit
            prove_forward(self.problem, loads, name, pinned)
            return
        names = ("q",) if self.kernel == "grad q" else ("k",)
        prove_backward(self.problem, loads, self.unit, names, (False, False), pinned)


def candidates(task: Task, runtime: Runtime) -> list[Row]:
    """The row that serves now, then every other that holds to the budgets, in tiles.txt's terms."""
    problem, kernel, unit = task.problem, task.kernel, task.unit
    sizes = problem.dtype.itemsize, problem.head_dim, problem.head_dim_v
    served = choose_tile(problem, kernel, unit, runtime)
    words = f"measured: {machine_name(runtime.gpu.name)}, {date.today().isoformat()}"
    work, cores = Work.of(problem, kernel), runtime.gpu.cores
    row = Row(
        kernel=kernel,
        family=family_name(runtime.gpu.family, unit),
        bits=8 * sizes[0],
        head_dim=max(sizes[1:]),
        size=work.size(cores),
        tile=served.tile,
        split=served.split,
        origin=words,
    )

    def splits(row: Row) -> int:
        return splits_of(cores, work.threadgroups(row.tile.rows), problem.seqlen_k, row.split)

    found = {(row.tile, splits(row) if kernel == "decode" else 0): row}
    for tile in _tiles(kernel, unit, row.head_dim):
        if threadgroup_bytes(kernel, tile, *sizes) > THREADGROUP_BYTES:
            continue
        if registers(kernel, tile, *sizes) > _MOST_REGISTERS[unit]:
            continue
        for split in _SPLITS if kernel == "decode" else (0,):
            other = row._replace(tile=tile, split=split)
            found.setdefault((tile, splits(other) if split else 0), other)
    return list(found.values())


def _tiles(kernel: str, unit: str, head_dim: int) -> Iterator[Tile]:
    """What the kernels are written for: at most 32 streamed rows, whole fragments, no long team."""
    streamed, rows = ((32,), (16, 32)) if unit == "tensor" else ((8, 16, 32), (8, 16))
    staged = (False,) if unit == "tensor" or kernel == "decode" else (True, False)
    teams = [team for team in (1, 2, 4) if team == 1 or head_dim >= 64 * team]
    shapes = product(streamed, rows, (1, 2, 4, 8), (True, False), staged, teams)
    for shape in shapes:
        tile = Tile(*shape, unit)
        if tile.simdgroups % tile.team == 0 and tile.owned <= LARGEST_TILE:
            yield tile


def tune(
    task: Task,
    rows: Sequence[Row],
    clock: Clock,
    repeats: int = 15,
    step: Callable[[str], None] = lambda word: None,
) -> list[Outcome]:
    """Prove and measure ``rows``, the fastest first, then those that failed with their reasons.

    Each gets warm-up calls; then all are measured in turns, so that a machine that slows down does
    so for all, and medians count. ``step`` is told of each proof and each turn.
    """
    calls: dict[Row, Call] = {}
    failed: list[Outcome] = []
    for row in rows:
        pinned = ((task.kernel, Choice(row.tile, row.split, row.origin)),)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # of trust: the outcome says it
                task.prove(pinned)
                calls[row] = task.call(pinned)
                for _ in range(_WARM_UPS):
                    calls[row]()
        except Exception as error:  # whatever a compiler, a driver or a comparison comes up with
            calls.pop(row, None)
            lines = str(error).strip().splitlines() or [""]
            failed.append(Outcome(row, None, f"{type(error).__name__}: {lines[0]}"))
        step("proving")
    first = {row: clock(call) for row, call in calls.items()}
    best = min(first.values(), default=0.0)
    times = {row: [ms] for row, ms in first.items()}
    for _ in range(repeats):
        for row, ms in first.items():
            if ms <= _HOPELESS * best:
                count = max(1, math.ceil(_LEAST_MS / max(ms, 1e-3)))
                times[row].append(clock(partial(_several, calls[row], count)) / count)
        step("measuring")
    measured = [Outcome(row, statistics.median(found[1:] or found)) for row, found in times.items()]
    return sorted(measured, key=lambda outcome: outcome.median_ms or 0.0) + failed


def _several(call: Call, count: int) -> None:
    for _ in range(count):
        call()


def clock_of(device: str) -> Clock:
    """The device's own events on Apple GPUs, the host's clock around a finished call elsewhere."""
    return _mps_milliseconds if device == "mps" else _host_milliseconds


def _mps_milliseconds(call: Call) -> float:
    start, end = (torch.mps.event.Event(enable_timing=True) for _ in range(2))
    torch.mps.synchronize()
    start.record()
    call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def _host_milliseconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)
