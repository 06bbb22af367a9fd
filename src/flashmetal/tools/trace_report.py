"""What a trace found, as a table or as JSON; the command ``flashmetal trace``."""

from __future__ import annotations

import argparse
import atexit
import json
import runpy
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..settings import trace_path, trace_target
from .trace import Kind, Total, Trace, features


def start_if_asked() -> None:
    """Trace the process from here to its end where $FLASHMETAL_TRACE asks for it."""
    target = trace_target()
    if target is not None:
        trace = Trace().__enter__()
        atexit.register(report, trace, None if target == "1" else target)


def add_command(commands: Any) -> None:
    """Add ``trace`` to the subparsers of the command line."""
    trace = commands.add_parser("trace", help="run a script, then show what it called and why")
    trace.add_argument("--json", metavar="FILE", help="write JSON there instead of the table")
    trace.add_argument("script", help="a Python file, or a folder or archive with __main__.py")
    trace.add_argument("arguments", nargs=argparse.REMAINDER, help="the script's own")


def run(options: argparse.Namespace) -> int:
    """Run the script as ``python SCRIPT`` would, traced; its own errors and exits pass through."""
    if not Path(options.script).exists():
        print(f"flashmetal trace: no such file: {options.script}", file=sys.stderr)
        return 2
    try:
        path = options.json
        if path is not None:
            path = trace_path("flashmetal trace: --json", path)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    sys.argv = [options.script, *options.arguments]
    sys.path[0] = str(Path(options.script).resolve().parent)
    trace = Trace()
    try:
        with trace:
            runpy.run_path(options.script, run_name="__main__")
    finally:
        report(trace, path)
    return 0


def report(trace: Trace, path: str | None) -> None:
    """Write the trace as JSON to ``path``, or as a table to stderr (JSON where rich is missing)."""
    if path is not None:
        Path(path).write_text(as_json(trace))
    elif find_spec("rich") is None:
        print(as_json(trace), file=sys.stderr)
    else:
        print_table(trace)


def as_json(trace: Trace) -> str:
    """One JSON object; ``calls`` holds an entry for each :class:`.trace.Kind`, slowest first."""
    calls: list[dict[str, Any]] = []
    for kind, total in _slowest_first(trace.totals):
        problem = kind.problem
        calls.append(
            {
                "function": kind.function,
                "device": problem.device,
                "dtype": _dtype(problem.dtype),
                "layout": problem.layout,
                "batch": problem.batch,
                "seqlen_q": problem.seqlen_q,
                "seqlen_k": problem.seqlen_k,
                "heads_q": problem.heads_q,
                "heads_k": problem.heads_k,
                "head_dim": problem.head_dim,
                "head_dim_v": problem.head_dim_v,
                "features": features(problem),
                "engine": kind.engine,
                "kernel": kind.kernel,
                "why": kind.why,
                **total._asdict(),
            }
        )
    return json.dumps({"torch": torch.__version__, "calls": calls}, indent=1) + "\n"


class _Line(NamedTuple):
    """What calls of one line of the table share; their lengths may differ."""

    function: str
    dtype: str
    heads: str
    features: str
    engine: str
    why: str


def print_table(trace: Trace) -> None:
    """The table, to stderr: a line for calls that differ in batch and lengths alone."""
    from rich.console import Console
    from rich.table import Table

    lines: dict[_Line, list[tuple[Kind, Total]]] = {}
    for kind, total in _slowest_first(trace.totals):
        lines.setdefault(_line(kind), []).append((kind, total))
    calls = sum(total.calls for total in trace.totals.values())
    table = Table(title=f"flashmetal: {calls} calls of attention", title_justify="left")
    for name in ("function", "calls", "ms", "MB", "B", "Sq", "Sk", "H, D", "features"):
        table.add_column(name, justify="right" if name in ("calls", "ms", "MB") else "left")
    table.add_column("engine")
    table.add_column("why")
    for line, members in lines.items():
        problems = [kind.problem for kind, _ in members]
        totals = [total for _, total in members]
        table.add_row(
            line.function,
            str(sum(total.calls for total in totals)),
            f"{1e3 * sum(total.seconds for total in totals):.1f}",
            f"{sum(total.bytes for total in totals) / 1e6:.1f}",
            *(_range([getattr(x, n) for x in problems]) for n in ("batch", "seqlen_q", "seqlen_k")),
            f"{line.heads} {line.dtype}",
            *line[3:],
        )
    console = Console(stderr=True)
    # A table cut to 80 columns, as of a file or a pipe, would hide the reasons.
    Console(stderr=True, width=None if console.is_terminal else 160).print(table)


def _line(kind: Kind) -> _Line:
    problem = kind.problem
    heads, dims = f"{problem.heads_q}", f"{problem.head_dim}"
    heads += f"/{problem.heads_k}" if problem.heads_k != problem.heads_q else ""
    dims += f"/{problem.head_dim_v}" if problem.head_dim_v != problem.head_dim else ""
    engine = kind.engine + (f", {kind.kernel}" if kind.kernel else "")
    words = ", ".join(features(problem))
    return _Line(kind.function, _dtype(problem.dtype), f"{heads}, {dims}", words, engine, kind.why)


def _slowest_first(totals: dict[Kind, Total]) -> list[tuple[Kind, Total]]:
    return sorted(totals.items(), key=lambda entry: -entry[1].seconds)


def _range(values: list[int]) -> str:
    least, most = min(values), max(values)
    return f"{least}" if least == most else f"{least}..{most}"


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
