"""``flashmetal tune``: its options, its progress bar, its table, and the row it keeps."""

from __future__ import annotations

import argparse
import sys
from typing import Any

import torch

from ..checks import DTYPES
from ..engines import metal
from ..engines.metal.machine_files import machine_file, machine_name
from ..engines.metal.measured import keep_row
from ..engines.metal.runtime import runtime_for
from ..engines.metal.tiles import KERNELS
from ..testing import make_inputs
from .arguments import count
from .tune import Clock, Outcome, Task, candidates, clock_of, tune

_DTYPES = {str(x).removeprefix("torch."): x for x in DTYPES if x is not torch.float64}
_SHOWN = 12  # outcomes


def add_command(commands: Any, device: str) -> None:
    """Add ``tune`` to the subparsers of the command line."""
    names = [kernel.replace(" ", "-") for kernel in KERNELS]
    parser = commands.add_parser("tune", help="measure tiles on this machine, keep the fastest")
    parser.add_argument("--kernel", choices=names, default="forward", help="default: %(default)s")
    parser.add_argument("--unit", choices=("simdgroup", "tensor"), default="simdgroup")
    parser.add_argument("--dtype", choices=_DTYPES, default="float16", help="default: %(default)s")
    parser.add_argument("--head-dim", type=count, default=128, help="default: %(default)s")
    parser.add_argument("--head-dim-v", type=count, help="default: --head-dim")
    parser.add_argument("--batch", type=count, default=1)
    parser.add_argument("--seqlen", type=count, help="queries; default: 4096, of a decode 1")
    parser.add_argument("--seqlen-k", type=count, help="keys; default: 4096")
    parser.add_argument("--heads", type=count, default=16, help="default: %(default)s")
    parser.add_argument("--kv-heads", type=count, help="default: as many as --heads")
    parser.add_argument("--causal", action="store_true")
    parser.add_argument("--device", default=device, help="default: %(default)s")
    parser.add_argument("--repeats", type=count, default=15, help="default: %(default)s")
    parser.add_argument("--dry-run", action="store_true", help="list the candidates, run nothing")
    parser.add_argument("--print-row", action="store_true", help="the winner as a row of tiles.txt")


def run(options: argparse.Namespace, clock: Clock | None = None) -> int:
    """Run the command and return the exit status. ``clock`` stands in for the device's."""
    from rich.console import Console

    console = Console(stderr=options.print_row)  # which leaves stdout to the row
    runtime = runtime_for(options.device)
    if runtime is None:
        print(
            f"flashmetal tune: no Metal runtime serves {options.device} tensors on this machine",
            file=sys.stderr,
        )
        return 1
    task = _task(options)
    refusal = metal.refuse(task.problem) or (
        metal.refuse_kernel(task.problem, "tensor") if task.unit == "tensor" else None
    )
    if task.kernel.startswith("grad"):
        refusal = refusal or metal.refuse_backward(task.problem)
    if task.kernel == "decode" and task.unit == "tensor":
        refusal = "a decode has no tensor operations"
    if refusal is not None:
        print(f"flashmetal tune: {refusal}", file=sys.stderr)
        return 1
    rows = candidates(task, runtime)
    if options.dry_run:
        for row in rows:
            print(row)
        return 0
    outcomes = _tuned(task, rows, clock or clock_of(options.device), options.repeats, console)
    _print_table(outcomes, rows[0], console)
    best = outcomes[0]
    if best.median_ms is None:
        console.print("No candidate is right on this machine: tiles.txt serves on.")
        return 1
    if options.print_row:
        print(best.row)
    chip = runtime.gpu.name
    path = machine_file("tiles", chip)
    try:
        keep_row(path, machine_name(chip), best.row)
    except OSError as error:
        print(f"flashmetal tune: cannot keep {best.row} in {path}: {error}", file=sys.stderr)
        return 1
    console.print(f"kept in {path}: it serves from the next process on", soft_wrap=True)
    return 0


def _task(options: argparse.Namespace) -> Task:
    kernel = options.kernel.replace("-", " ")
    rows = options.seqlen or (1 if kernel == "decode" else 4096)
    problem, inputs = make_inputs(
        batch=options.batch,
        seqlen_q=rows,
        seqlen_k=options.seqlen_k or max(rows, 4096 if kernel == "decode" else rows),
        heads_q=options.heads,
        heads_k=options.kv_heads or options.heads,
        head_dim=options.head_dim,
        head_dim_v=options.head_dim_v or options.head_dim,
        window_right=0 if options.causal else -1,
        dtype=_DTYPES[options.dtype],
        device=options.device,
    )
    # Of float32 the plan takes tensor operations for TF32 alone.
    is_tf32 = options.unit == "tensor" and problem.dtype == torch.float32
    return Task(problem._replace(tf32=is_tf32), inputs, kernel, options.unit)


def _tuned(task: Task, rows: Any, clock: Clock, repeats: int, console: Any) -> list[Outcome]:
    from rich.progress import Progress

    with Progress(console=console) as progress:
        bars = {
            "proving": progress.add_task(f"proving {len(rows)} tiles", total=len(rows)),
            "measuring": progress.add_task("measuring", total=repeats),
        }
        return tune(task, rows, clock, repeats, lambda word: progress.advance(bars[word]))


def _print_table(outcomes: list[Outcome], served: Any, console: Any) -> None:
    from rich import box
    from rich.table import Table

    columns = "simdgroups", "team", "rows", "by", "owned", "streams", "split", "median ms", ""
    table = Table(*columns, box=box.SIMPLE, pad_edge=False)
    for row, median_ms, note in outcomes[:_SHOWN]:
        tile = row.tile
        table.add_row(
            *map(str, (tile.simdgroups, tile.team, tile.rows, tile.streamed)),
            "registers" if tile.owned_in_registers else "device",
            "staged" if tile.staged else "device",
            str(row.split or "-"),
            "" if median_ms is None else f"{median_ms:.3f}",
            note,
        )
    console.print(table)
    failed = sum(outcome.median_ms is None for outcome in outcomes)
    before = next(outcome.median_ms for outcome in outcomes if outcome.row == served)
    words = "is not right" if before is None else f"takes {before:.3f} ms"
    console.print(f"{len(outcomes)} tiles, {failed} of them not right; the one until now {words}")
