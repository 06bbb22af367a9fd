"""What the Metal kernels do, and how long the time model says they take, in real models.

Every workload of flashmetal's bench meets every forward tile that holds its head dimensions, or the
decode kernel, and a plain FlashAttention-2 kernel. Nothing is measured: short launches are counted
in metalsim and extended to full size (kernel_steps.py), and its time model makes times of counts.
Writes kernels.json, kernels_work.png and kernels_time.png to benchmarks/results.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kernel_cases import Bench, is_decode, kernels_of, name_of, served_tile
from kernel_plots import plot_time, plot_work
from kernel_times import as_row
from report import machine
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from flashmetal.tools.bench.workloads import Workload, workloads

RESULTS = Path(__file__).parent / "results"
CHIPS = ("M1 Max", "M3 Max", "M4", "M5 Max")
HOW = (
    "Simulated. Counters of metalsim at the lengths in `simulated` (queries, keys, window left and"
    " right), extended exactly to full size: they are linear in the numbers of threadgroups and of"
    " visits of blocks of keys, by kind. Heads are taken to be alike, which the alignment of lse"
    " can belie by a line. A decode runs at full length with one key head. Times are those of the"
    " time model. bfloat is counted as half; threadgroups of packed batches without rows are not."
)
_LONG = {"heads_q": 32, "heads_k": 32, "seqlen_q": 8192, "seqlen_k": 8192, "window_right": 0}
LONG = [
    Workload(f"causal 8192, D={dim}", **_LONG, head_dim=dim, head_dim_v=dim) for dim in (64, 128)
]


def rows_of(workload: Workload, bench: Bench) -> list[dict[str, Any]]:
    """A row a kernel, each with the chips whose plan would take it."""
    done = [bench.forward(workload, kernel) for kernel in kernels_of(workload, CHIPS)]
    if is_decode(workload):
        done += [bench.decode(workload, chip) for chip in CHIPS]
    rows = [as_row(workload, each, CHIPS) for each in done]
    for row in rows:
        row["serves"] = [chip for chip in row["predicted"] if _serves(workload, row, chip)]
    return rows


def _serves(workload: Workload, row: dict[str, Any], chip: str) -> bool:
    if is_decode(workload):
        return row["kernel"] != "plain"
    return row["kernel"] == name_of(served_tile(workload, chip))


def show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """A line a workload: what serves it, beside the plain kernel."""
    table = Table(title="predicted ms (times plain), limit", box=box.SIMPLE, pad_edge=False)
    table.padding = (0, 1, 0, 0)
    table.add_column("workload", min_width=16)
    table.add_column("mult.", no_wrap=True)
    table.add_column("bytes", no_wrap=True)
    for chip in CHIPS:
        table.add_column(chip, min_width=10)
    table.caption = "mult., bytes: multiply-adds and device bytes over the least, on M1 Max"
    for name in dict.fromkeys(row["workload"] for row in rows):
        own = [row for row in rows if row["workload"] == name]
        plain = next((row for row in own if row["kernel"] == "plain"), None)
        served = {chip: next(row for row in own if chip in row["serves"]) for chip in CHIPS}
        first = served[CHIPS[0]]
        table.add_row(
            name,
            f"{first['multiplies_over_least']:.2f}",
            f"{first['device_bytes_over_least']:.1f}",
            *(_cell(row["predicted"][chip], plain, chip) for chip, row in served.items()),
        )
    console.print(table)


def _cell(predicted: dict[str, Any], plain: dict[str, Any] | None, chip: str) -> str:
    milliseconds = predicted["milliseconds"]
    if plain is None:
        return f"{milliseconds:.3g} {predicted['limit']}"
    ratio = plain["predicted"][chip]["milliseconds"] / milliseconds
    return f"{milliseconds:.3g} ({ratio:.1f}x) {predicted['limit']}"


def write(path: Path, rows: Sequence[dict[str, Any]], words: Sequence[str]) -> None:
    """The results file, a line a row; ``words`` are those by which some workloads were chosen."""
    head = {"script": "benchmarks/kernels.py", "machine": machine(), "only": list(words)}
    head["simulated"] = HOW
    lines = ",\n".join(json.dumps(row) for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]},\n"rows": [\n{lines}\n]}}\n')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("words", nargs="*", help="of workloads; all by default")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    options = parser.parse_args()
    console, bench = Console(), Bench()
    chosen = [*LONG, *workloads([])]
    if options.words:
        chosen = [w for w in chosen if any(x.lower() in w.name.lower() for x in options.words)]
    rows: list[dict[str, Any]] = []
    with Progress(console=console) as progress:
        task = progress.add_task("simulating", total=len(chosen))
        for workload in chosen:
            progress.update(task, description=workload.name)
            rows += rows_of(workload, bench)
            progress.advance(task)
    options.output.mkdir(parents=True, exist_ok=True)
    write(options.output / "kernels.json", rows, options.words)
    plot_work(options.output / "kernels_work.png", rows, CHIPS[0])
    plot_time(options.output / "kernels_time.png", rows, CHIPS)
    show(console, rows)


if __name__ == "__main__":
    main()
