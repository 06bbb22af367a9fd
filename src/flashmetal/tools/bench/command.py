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

from .measure import Options, Row, measure
from .memory import peak_bytes
from .workloads import Workload, workloads

Peaks = dict[str, dict[int, int]]


def run(options: argparse.Namespace) -> int:
    """Measure and show: 1 if flashmetal is wrong, 2 for options that mean nothing."""
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
    rows, peaks = _measured(chosen, options)
    what = "forward + backward" if options.training else "forward"
    _print(what, rows, peaks)
    if options.csv:
        _write_csv(options.csv, rows, peaks)
    if options.plot:
        from .plot import plot

        plot(options.plot, what, rows, peaks)
    ours = [row for row in rows if row.contestant == "flashmetal"]
    return int(any(row.error is not None and row.median_ms is None for row in ours))


def _measured(chosen: list[Workload], options: argparse.Namespace) -> tuple[list[Row], Peaks]:
    asked = Options(
        options.device, tuple(options.against), options.max_gb, options.repeats, options.training
    )
    rows: list[Row] = []
    peaks: Peaks = {}
    recorded = torch.inference_mode(not options.training)
    with Progress(console=Console(stderr=True), transient=True) as progress, recorded:
        for workload in progress.track(chosen, description="speed"):
            try:
                rows += measure(workload, asked)
            except (NotImplementedError, ValueError) as error:
                rows.append(Row(workload.name, "flashmetal", None, None, str(error)))
        points = [(name, s) for name in ("flashmetal", *options.against) for s in options.memory]
        for name, seqlen in progress.track(points, description="memory"):
            found = peak_bytes(chosen[0].at(seqlen), name, asked)
            if found is not None:
                peaks.setdefault(name, {})[seqlen] = found
    return rows, peaks


def _check(options: argparse.Namespace) -> None:
    if options.plot and find_spec("matplotlib") is None:
        raise ValueError("flashmetal bench: --plot needs pip install 'flashmetal[bench]'")
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


def _print(what: str, rows: list[Row], peaks: Peaks) -> None:
    table = Table("workload", "contestant", title=f"{what}, median", title_justify="left")
    table.add_column("ms", justify="right")
    table.add_column("error", justify="right")
    table.add_column("")
    for row in rows:
        time = "" if row.median_ms is None else f"{row.median_ms:.2f}"
        error = "" if row.error is None else f"{row.error:.1e}"
        table.add_row(row.workload, row.contestant, time, error, row.note)
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
        writer.writerow((*Row._fields, "seqlen", "peak_bytes"))
        writer.writerows((*row, "", "") for row in rows)
        name = rows[0].workload
        for contestant, points in peaks.items():
            writer.writerows((name, contestant, "", "", "", *point) for point in points.items())
