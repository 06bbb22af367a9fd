"""The benchmark's table, plots and results file."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from cases import Case
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.table import Table

_ORDER = ("flashmetal", "portable", "stock", "sdpa", "eager")
_RIVALS = ("sdpa", "eager")


def machine() -> dict[str, Any]:
    """Where and when the numbers were taken: date, commit, versions, CPU, threads."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": _git("describe", "--always", "--dirty", "--abbrev=12"),
        "flashmetal": _version("flashmetal"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": _cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "omp_wait_policy": os.environ.get("OMP_WAIT_POLICY", "default"),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def print_table(console: Console, rows: list[dict[str, Any]]) -> None:
    """Medians in milliseconds; a rival that has a target carries the speed-up, green if reached."""
    table = Table(title="forward, median ms (speed-up)", box=box.SIMPLE, pad_edge=False)
    table.add_column("case", no_wrap=True)
    for name in ("flashmetal", *_RIVALS):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        times = [_time(row, name) for name in ("flashmetal", *_RIVALS)]
        table.add_row(row["case"], *times)
    console.print(table)
    console.print("Shapes, engines and minima are in the results file.")


def _time(row: dict[str, Any], name: str) -> str:
    if name not in row["median_ms"]:
        return ""
    time = f"{row['median_ms'][name]:.1f}"
    if name not in row["targets"]:
        return time
    return f"[{'green' if row['reached'][name] else 'red'}]{time} ({row['speedups'][name]:.2f}x)[/]"


def write_results(folder: Path, name: str, results: dict[str, Any]) -> None:
    """Everything that was measured, and where, as one JSON object."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine(), **results}, indent=1)
    (folder / f"{name}.json").write_text(text + "\n")


def summary(case: Case, times: dict[str, list[float]]) -> dict[str, Any]:
    """What the milliseconds of one case's contestants say."""
    # Ratios within a round, taken moments apart, cancel what else the machine is doing.
    speedups = {
        name: statistics.median(
            rival / own for rival, own in zip(times[name], times["flashmetal"], strict=False)
        )
        for name in times
    }
    return {
        "case": case.name,
        "like": case.like,
        "shape": case.workload.shape(),
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "min_ms": {name: min(values) for name, values in times.items()},
        "repeats": {name: len(values) for name, values in times.items()},
        "speedups": speedups,
        "targets": case.targets,
        "reached": {name: speedups[name] >= case.targets[name] for name in case.targets},
    }


def options_of(description: str, repeats: int) -> argparse.ArgumentParser:
    """What every script that times cases can be told."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cases", nargs="+", help="only the cases of these names")
    parser.add_argument("--repeats", type=int, default=repeats, help="most calls of each")
    results = Path(__file__).parent / "results"
    parser.add_argument("--results", type=Path, default=results, help="where files go")
    return parser


def wait_passively() -> None:
    """Start the process again under OMP_WAIT_POLICY=passive, which OpenMP reads with torch.

    Beside any other busy process, threads that spin between operations lose their time slice each
    time, and calls of many operations take ten times as long.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])


def plot_speed(path: Path, rows: list[dict[str, Any]]) -> None:
    """Each contestant's time over flashmetal's, by case: above 1 flashmetal is faster."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    axes = figure.subplots()
    names = [name for name in _ORDER if any(name in row["median_ms"] for row in rows)]
    width = 0.8 / len(names)
    for place, name in enumerate(names):
        found = [(i, row["speedups"]) for i, row in enumerate(rows) if name in row["speedups"]]
        axes.bar(
            [i + width * (place - (len(names) - 1) / 2) for i, _ in found],
            [speedups[name] for _, speedups in found],
            width,
            label=name,
        )
    axes.set_yscale("log")
    axes.axhline(1.0, color="black", linewidth=0.8)
    axes.set_xticks(range(len(rows)), [row["case"] for row in rows], rotation=30, ha="right")
    axes.set_ylabel("time / flashmetal's time (log)")
    axes.set_title(f"forward attention on {torch.get_num_threads()} CPU threads, {_cpu_name()}")
    axes.legend()
    figure.savefig(path, dpi=120)


def plot_memory(path: Path, peaks: dict[str, dict[int, int]]) -> None:
    """Peak memory above the inputs against sequence length."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    for subject, points in peaks.items():
        axes.plot(
            list(points), [peak / 2**20 for peak in points.values()], marker="o", label=subject
        )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.set_xlabel("sequence length")
    axes.set_ylabel("peak MiB above the inputs (log)")
    axes.set_title("peak memory of one forward call, B 1, H 1, D 64, fp32")
    axes.legend()
    figure.savefig(path, dpi=120)
