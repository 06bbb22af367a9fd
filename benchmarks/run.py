"""The engines against eager attention and torch's own, side by side in one run.

    python benchmarks/run.py [--cases NAME ...] [--repeats 15] [--skip-memory] [--results DIR]

Every contestant is checked against the float64 reference before it is timed, and a wrong one stops
the run. Repetitions are interleaved, so that a busy machine slows all contestants alike. Prints a
table; writes engines.json, engines_speed.png and engines_memory.png.

Threads wait passively (OMP_WAIT_POLICY): beside any other busy process, threads that spin between
operations lose their time slice each time, and calls of many operations take ten times as long.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from cases import CASES, Case
from memory import MEMORY_SUBJECTS, SEQLENS, peak_bytes
from report import machine, plot_memory, plot_speed, print_table, write_json
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor

from flashmetal.bench.contestants import Contestant, contestants
from flashmetal.plan import plan
from flashmetal.problem import AttentionInputs, AttentionProblem
from flashmetal.reference import attention_reference
from flashmetal.testing import error_budget

# A slow contestant is repeated less: its share of noise is smaller.
_SECONDS_EACH = 3.0
_LEAST_REPEATS = 3
_SLACK_OF_OTHERS = 8


class Expected(NamedTuple):
    """Float64 results of a case's first kv head and entry, and the errors allowed beside them."""

    o: Tensor
    lse: Tensor
    budget_o: float
    budget_lse: float


def expected(problem: AttentionProblem, inputs: AttentionInputs) -> Expected:
    """The reference on one kv head and one entry, or on one kv head of a packed batch."""
    group = problem.heads_q // problem.heads_k
    entry = slice(None) if problem.layout == "varlen" else slice(0, 1)
    bias, slopes, sinks = inputs.bias, inputs.alibi_slopes, inputs.sinks
    part = problem._replace(
        heads_q=group, heads_k=1, batch=problem.batch if problem.layout == "varlen" else 1
    )
    tensors = inputs._replace(
        q=inputs.q[entry, ..., :group, :],
        k=inputs.k[entry, ..., :1, :],
        v=inputs.v[entry, ..., :1, :],
        bias=None if bias is None else bias[:, :group],
        alibi_slopes=None if slopes is None else slopes[:group],
        sinks=None if sinks is None else sinks[:group],
    )
    exact = attention_reference(part, tensors, compute_dtype=torch.float64)
    low = attention_reference(part, tensors)
    return Expected(*exact, error_budget(low[0], exact[0]), error_budget(low[1], exact[1]))


def check(contestant: Contestant, right: Expected) -> None:
    """RuntimeError unless the contestant's result is right: no number stands on a wrong one."""
    o, lse = contestant.call()
    entry = slice(None) if o.ndim == 3 else slice(0, 1)
    group = right.o.shape[-2]
    error = float((o[entry, ..., :group, :] - right.o).abs().max())
    # Models' own eager code rounds scores to bfloat16, ours may not.
    slack = 1 if lse is not None else _SLACK_OF_OTHERS
    wrong = not error <= slack * right.budget_o
    if lse is not None:
        part = lse[:group] if o.ndim == 3 else lse[:1, :group]
        wrong = wrong or not float((part - right.lse).abs().max()) <= right.budget_lse
    if wrong:
        raise RuntimeError(
            f"{contestant.name} is wrong: error {error:.2e} in o, budget {right.budget_o:.2e}"
        )


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Check, then time, every contestant of one case: milliseconds by contestant."""
    problem, inputs = case.build()
    field = contestants(problem, inputs, case.rivals)
    right = expected(problem, inputs)
    left: dict[str, int] = {}
    for contestant in field:
        check(contestant, right)
        start = time.perf_counter()
        contestant.call()
        elapsed = time.perf_counter() - start
        left[contestant.name] = max(_LEAST_REPEATS, min(repeats, int(_SECONDS_EACH / elapsed)))
    times: dict[str, list[float]] = {contestant.name: [] for contestant in field}
    while any(left.values()):
        for contestant in field:
            if left[contestant.name]:
                left[contestant.name] -= 1
                start = time.perf_counter()
                contestant.call()
                times[contestant.name].append(1e3 * (time.perf_counter() - start))
    # Ratios within a round, taken moments apart, cancel what else the machine is doing.
    speedups = {
        name: statistics.median(
            rival / own for rival, own in zip(times[name], times["flashmetal"], strict=False)
        )
        for name in times
    }
    chosen = plan(problem)
    return {
        "case": case.name,
        "like": case.like,
        "shape": case.shape(),
        "engine": chosen.engine,
        "why": chosen.why,
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "min_ms": {name: min(values) for name, values in times.items()},
        "repeats": {name: len(values) for name, values in times.items()},
        "speedups": speedups,
        "targets": case.targets,
        "reached": {name: speedups[name] >= case.targets[name] for name in case.targets},
    }


def measure_memory(progress: Progress) -> dict[str, dict[int, int]]:
    """Peak bytes above the inputs, by subject and sequence length, each in its own process."""
    task = progress.add_task("memory", total=len(MEMORY_SUBJECTS) * len(SEQLENS))
    peaks: dict[str, dict[int, int]] = {}
    for subject in MEMORY_SUBJECTS:
        peaks[subject] = {}
        for seqlen in SEQLENS:
            progress.update(task, description=f"memory: {subject} at {seqlen}")
            peaks[subject][seqlen] = peak_bytes(subject, seqlen)
            progress.advance(task)
    return peaks


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description="time the engines against eager and SDPA")
    parser.add_argument("--cases", nargs="+", help="only the cases of these names")
    parser.add_argument("--repeats", type=int, default=15, help="most repetitions of one call")
    parser.add_argument("--skip-memory", action="store_true", help="leave out the memory plot")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="where files go"
    )
    arguments = parser.parse_args()
    cases = [case for case in CASES if not arguments.cases or case.name in arguments.cases]
    console = Console()
    columns = (TextColumn("{task.description:40}"), BarColumn(), TimeElapsedColumn())
    rows: list[dict[str, Any]] = []
    peaks: dict[str, dict[int, int]] = {}
    with Progress(*columns, console=console) as progress, torch.inference_mode():
        task = progress.add_task("speed", total=len(cases))
        for case in cases:
            progress.update(task, description=f"speed: {case.name}")
            rows.append(measure(case, arguments.repeats))
            progress.advance(task)
        if not arguments.skip_memory:
            peaks = measure_memory(progress)
    print_table(console, rows)
    arguments.results.mkdir(parents=True, exist_ok=True)
    write_json(arguments.results / "engines.json", machine(), rows, peaks)
    plot_speed(arguments.results / "engines_speed.png", rows)
    if peaks:
        plot_memory(arguments.results / "engines_memory.png", peaks)
    console.print(f"Results and plots are in {arguments.results}")
    missed = [row["case"] for row in rows if not all(row["reached"].values())]
    if missed:
        console.print(f"[red]Target missed:[/red] {', '.join(missed)}")


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP reads it when torch is loaded, so the process starts again.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
