"""The picture of ``flashmetal bench``; needs the extra ``bench``."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure

from .measure import Row


def plot(path: Path, what: str, rows: list[Row], peaks: dict[str, dict[int, int]]) -> None:
    """Milliseconds by workload and contestant; beside them memory by length where measured."""
    names = list(dict.fromkeys(row.workload for row in rows))
    contestants = list(dict.fromkeys(row.contestant for row in rows))
    figure = Figure(figsize=(7 + (6 if peaks else 0), 4 + 0.5 * len(names)), layout="constrained")
    grid = figure.subplots(1, 2 if peaks else 1, squeeze=False)[0]
    for contestant in contestants:
        timed = [row for row in rows if row.contestant == contestant and row.median_ms is not None]
        places = [names.index(row.workload) for row in timed]
        # Points, for the length of a bar means nothing on a scale without a zero.
        grid[0].plot([row.median_ms for row in timed], places, "o", label=contestant)
    grid[0].set_yticks(range(len(names)), names)
    grid[0].set_ylim(len(names) - 0.5, -0.5)
    grid[0].set_xscale("log", base=2)
    grid[0].xaxis.set_major_formatter("{x:g}")
    grid[0].grid(linewidth=0.3)
    grid[0].set_xlabel(f"median ms, {what} (log)")
    grid[0].legend()
    for contestant, points in peaks.items():
        megabytes = [peak / 1e6 for peak in points.values()]
        grid[1].plot(list(points), megabytes, marker="o", label=contestant)
    if peaks:
        grid[1].set_xscale("log", base=2)
        grid[1].set_yscale("log", base=2)
        for axis in (grid[1].xaxis, grid[1].yaxis):
            axis.set_major_formatter("{x:g}")
        grid[1].set_xlabel("sequence length")
        grid[1].set_ylabel("peak MB above the inputs (log)")
        grid[1].legend()
    figure.savefig(path, dpi=120)
