"""The mutants of test_barrier_mutation under two checkers: metalsim's, and NVIDIA's racecheck.

    python benchmarks/barriers.py --simulate    # on CPUs: which launch shows each mutant
    python benchmarks/barriers.py               # on a GPU: racecheck of the same launch
    python benchmarks/barriers.py --table       # the results in markdown

All three use results/barriers.json. The kernels as they are come along, launch by launch: both have
to find them clean, and so memcheck and synccheck. NVIDIA's tools run as `metalsim check --engine
cuda` runs them.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from report import machine
from rich.progress import track
from torch import Tensor

import metalsim
from metalsim.cuda.sanitizer import TOOLS, sanitize
from tests.kernels.launches import LAUNCHES
from tests.kernels.test_barrier_mutation import Mutant, mutants

RESULTS = Path(__file__).parent / "results" / "barriers.json"
NONE = Mutant("", 0, "none", "", "")
AT_A_TIME = 14
CLEAN = "clean"
Row = dict[str, Any]


class _OnGpu:
    """A kernel that takes tensors of the host, by copies of the memory under them."""

    def __init__(self, kernel: metalsim.Kernel) -> None:
        self._kernel = kernel

    def __call__(self, *arguments: Any, **options: Any) -> None:
        flat = {i: _memory(x) for i, x in enumerate(arguments) if isinstance(x, Tensor)}
        copies = {i: memory.cuda() for i, memory in flat.items()}
        self._kernel(*(copies.get(i, x) for i, x in enumerate(arguments)), **options)
        for i, memory in flat.items():
            memory.copy_(copies[i])


def _memory(x: Tensor) -> Tensor:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1 if x.numel() else 0,), (1,))


class _Library:
    """The CUDA engine, for tensors of the host."""

    def __init__(self, source: str) -> None:
        self._library = metalsim.compile_shader(source, engine="cuda")

    def __getattr__(self, name: str) -> _OnGpu:
        return _OnGpu(getattr(self._library, name))


def run(launch: str, mutant: Mutant, compiler: Callable[[str], Any]) -> bool:
    """Launch with a mutant in its place; whether the launch has that place."""
    found: list[bool] = []

    def compile_mutant(source: str) -> Any:
        found.append(mutant.original in source)
        return compiler(source.replace(mutant.original, mutant.text))

    LAUNCHES[launch].run(compile_mutant)
    return any(found)


def checked(launch: str, mutant: Mutant) -> str | None:
    """What metalsim's checkers say first, "clean", or None for a launch without the place."""

    def compile_checked(source: str) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(source, check=True)

    try:
        return CLEAN if run(launch, mutant, compile_checked) else None
    except metalsim.SimulationError as error:
        return f"{error.kind}: {str(error).splitlines()[0]}"


def simulated(work: tuple[Mutant, tuple[str, ...]]) -> Row:
    """A mutant with the first of the launches that shows it, or the last that has its place."""
    torch.set_num_threads(1)
    mutant, launches = work
    row = _name(mutant)
    for launch in launches:
        verdict = checked(launch, mutant)
        if verdict is not None:
            row |= {"launch": launch, "metalsim": verdict}
            if verdict != CLEAN:
                break
    return row


def simulate() -> list[Row]:
    """A row for every launch as it is, and one for every mutant."""
    work = [(NONE, (launch,)) for launch in LAUNCHES]
    work += [(mutant, tuple(LAUNCHES)) for mutant in mutants()]
    spawned = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawned) as pool:
        return list(track(pool.map(simulated, work), "simulating", len(work)))


def _name(mutant: Mutant) -> Row:
    return {"file": mutant.file, "barrier": mutant.barrier, "mutation": mutant.mutation}


def sanitized(row: Row) -> str:
    """What racecheck says first of a row's launch, in a process of its own; of the kernels as they
    are all tools."""
    command = [sys.executable, __file__, "--launch", json.dumps(row)]
    try:
        hazards = sanitize(command, ["races"] if row["file"] else list(TOOLS))
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        return f"failed: {str(error).strip().splitlines()[-1]}"
    return " ".join(str(hazards[0]).split()) if hazards else CLEAN


def launch_on_gpu(row: Row) -> None:
    """The launch of a row, on the GPU."""
    chosen = (NONE, *mutants())
    (mutant,) = (m for m in chosen if _name(m).items() <= row.items())
    if not run(row["launch"], mutant, _Library):
        sys.exit("the launch does not have the barrier")


def check_on_gpu(rows: list[Row]) -> dict[str, Any]:
    """Add the verdicts of NVIDIA's tools; where they were made."""
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        verdicts = list(track(pool.map(sanitized, rows), "on the GPU", len(rows)))
    for row, verdict in zip(rows, verdicts, strict=True):
        row["nvidia"] = verdict
    return {"machine": machine(), "device": torch.cuda.get_device_name()}


def table(rows: list[Row]) -> str:
    """In markdown: a line a barrier, a column a mutation, metalsim's verdict and NVIDIA's."""
    mutations = list(dict.fromkeys(row["mutation"] for row in rows if row["file"]))
    lines = ["| barrier | " + " | ".join(mutations) + " |", "| --- |" + " --- |" * len(mutations)]
    for file, barrier in dict.fromkeys((row["file"], row["barrier"]) for row in rows):
        if file:
            cells = {
                row["mutation"]: f"{_word(row['metalsim'])} / {_word(row['nvidia'])}"
                for row in rows
                if (row["file"], row["barrier"]) == (file, barrier)
            }
            found = " | ".join(cells.get(mutation, "") for mutation in mutations)
            lines.append(f"| {file} {barrier} | {found} |")
    return "\n".join(lines)


def _word(verdict: str) -> str:
    return verdict.partition(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--simulate", action="store_true", help="metalsim's verdicts")
    parser.add_argument("--table", action="store_true", help="print the results")
    parser.add_argument("--launch", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.launch is not None:
        return launch_on_gpu(options.launch)
    if options.simulate:
        found: dict[str, Any] = {"rows": simulate()}
    else:
        found = json.loads(options.results.read_text())
        if not options.table:
            found |= check_on_gpu(found["rows"])
        print(table(found["rows"]))
    if not options.table:
        options.results.write_text(json.dumps(found, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
