"""The command ``flashmetal bench``: what it measures, its table and CSV."""

from __future__ import annotations

import argparse
import csv
import sys
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from .measure import Row, measure
from .memory import peak_bytes
from .workloads import Workload, workloads

Peaks = dict[str, dict[int, int]]


def run(options: argparse.Namespace) -> int:
    """Measure and show; 2 for options that mean nothing."""
    try:
        chosen = workloads(options.workloads) if options.workloads or options.list else []
        _check(options)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if options.list:
        print("\n".join(workload.name for workload in chosen))
        return 0
    chosen = chosen or [_by_shape(options)]
    if options.seqlen:
        chosen = [workload.at(options.seqlen) for workload in chosen]
    if options.dtype:
        chosen = [workload._replace(dtype=options.dtype) for workload in chosen]
    rows: list[Row] = []
    peaks: Peaks = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True) as progress, torch.inference_mode():
        for workload in progress.track(chosen, description="speed"):
            try:
                rows += measure(
                    workload, options.device, options.against, options.max_gb, options.repeats
                )
            except (NotImplementedError, ValueError) as error:
                rows.append(Row(workload.name, "flashmetal", None, str(error)))
        points = [(name, s) for name in ("flashmetal", *options.against) for s in options.memory]
        for name, seqlen in progress.track(points, description="memory"):
            found = peak_bytes(chosen[0].at(seqlen), name, options.max_gb)
            if found is not None:
                peaks.setdefault(name, {})[seqlen] = found
    _print(rows, peaks)
    if options.csv:
        _write_csv(options.csv, rows, peaks)
    if options.plot:
        from .plot import plot

        plot(options.plot, rows, peaks)
    return 0


def _check(options: argparse.Namespace) -> None:
    if options.plot and find_spec("matplotlib") is None:
        raise ValueError("flashmetal bench: --plot needs pip install 'flashmetal[bench]'")
    if options.memory and options.device != "cpu":
        raise ValueError(f"flashmetal bench: --memory needs --device cpu, got {options.device!r}")
    for path in (options.csv, options.plot):
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"flashmetal bench: no folder for {path}")


def _by_shape(options: argparse.Namespace) -> Workload:
    left, right = options.window
    return Workload(
        "the shape given",
        batch=options.batch,
        heads_q=options.heads,
        heads_k=options.kv_heads or options.heads,
        head_dim=options.head_dim,
        head_dim_v=options.head_dim,
        window_left=left,
        window_right=0 if options.causal else right,
        softcap=options.softcap,
        sinks=options.sinks,
        alibi=options.alibi,
    )


def _print(rows: list[Row], peaks: Peaks) -> None:
    table = Table("workload", "contestant", title="forward, median", title_justify="left")
    table.add_column("ms", justify="right")
    table.add_column("")
    for row in rows:
        time = "" if row.median_ms is None else f"{row.median_ms:.2f}"
        table.add_row(row.workload, row.contestant, time, row.note)
    console = Console()
    console.print(table)
    if peaks:
        memory = Table(title="peak MB above the inputs", title_justify="left")
        lengths = sorted({seqlen for points in peaks.values() for seqlen in points})
        for name in ("contestant", *map(str, lengths)):
            memory.add_column(name)
        for name, points in peaks.items():
            cells = [f"{points[s] / 1e6:.1f}" if s in points else "" for s in lengths]
            memory.add_row(name, *cells)
        console.print(memory)


def _write_csv(path: Path, rows: list[Row], peaks: Peaks) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("workload", "contestant", "median_ms", "note", "seqlen", "peak_bytes"))
        writer.writerows((*row, "", "") for row in rows)
        name = rows[0].workload
        for contestant, points in peaks.items():
            writer.writerows((name, contestant, "", "", *point) for point in points.items())
