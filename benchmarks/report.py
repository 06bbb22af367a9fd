"""The benchmark's table, plots and results file."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
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


def write_json(
    path: Path,
    where: dict[str, Any],
    rows: list[dict[str, Any]],
    peaks: dict[str, dict[int, int]],
) -> None:
    """Everything that was measured, as one JSON object."""
    results = {"machine": where, "speed": rows, "peak_bytes_above_inputs": peaks}
    path.write_text(json.dumps(results, indent=1) + "\n")


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
