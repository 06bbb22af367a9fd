"""The engines against eager attention and torch's own, side by side in one run.

    python benchmarks/run.py [--cases NAME ...] [--repeats 15] [--skip-memory] [--results DIR]

Every contestant is checked against the float64 reference before it is timed, and a wrong one stops
the run. Repetitions are interleaved, so that a busy machine slows all contestants alike. Prints a
table; writes engines.json, engines_speed.png and engines_memory.png.
"""

from __future__ import annotations

from typing import Any

import torch
from cases import CASES, Case
from memory import MEMORY_SUBJECTS, SEQLENS, peak_bytes
from report import (
    options_of,
    plot_memory,
    plot_speed,
    print_table,
    summary,
    wait_passively,
    write_results,
)
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flashmetal.plan import plan
from flashmetal.tools.bench.checking import Oracle
from flashmetal.tools.bench.contestants import Contestant, contestants
from flashmetal.tools.bench.measure import interleaved

_LEAST_REPEATS = 3


def check(contestant: Contestant, oracle: Oracle) -> None:
    """RuntimeError unless the contestant's result is right: no number stands on a wrong one."""
    verdict = oracle.judge(*contestant.call())
    if not verdict.right:
        raise RuntimeError(f"{contestant.name} is {verdict}")


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Check, then time, every contestant of one case: milliseconds by contestant."""
    problem, inputs = case.workload.build("cpu")
    field = contestants(problem, inputs, case.rivals)
    oracle = Oracle(problem, inputs)
    for contestant in field:
        check(contestant, oracle)
    calls = {contestant.name: contestant.call for contestant in field}
    times = interleaved(calls, repeats, least=_LEAST_REPEATS)
    chosen = plan(problem)
    return {**summary(case, times), "engine": chosen.engine, "why": chosen.why}


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
    parser = options_of("time the engines against eager and SDPA", repeats=15)
    parser.add_argument("--skip-memory", action="store_true", help="leave out the memory plot")
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
    write_results(arguments.results, "engines", {"speed": rows, "peak_bytes_above_inputs": peaks})
    plot_speed(arguments.results / "engines_speed.png", rows)
    if peaks:
        plot_memory(arguments.results / "engines_memory.png", peaks)
    console.print(f"Results and plots are in {arguments.results}")
    missed = [row["case"] for row in rows if not all(row["reached"].values())]
    if missed:
        console.print(f"[red]Target missed:[/red] {', '.join(missed)}")


if __name__ == "__main__":
    wait_passively()
    main()
