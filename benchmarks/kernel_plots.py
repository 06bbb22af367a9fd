"""Plots of what the kernels do and how long it is predicted to take."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure


def plot_work(path: Path, rows: Sequence[dict[str, Any]], chip: str) -> None:
    """Multiply-adds and device bytes over the least that any kernel needs, by workload."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(2, 1, sharex=True)
    pairs = _pairs(rows, chip)
    for each, key, title in (
        (axes[0], "multiplies_over_least", "multiply-adds / those of visible pairs"),
        (axes[1], "device_bytes_over_least", "device bytes / each once (log)"),
    ):
        for place, name in enumerate(("flashmetal", "plain")):
            each.plot([pair[place][key] for pair in pairs], "o", markersize=4, label=name)
        each.axhline(1.0, color="black", linewidth=0.8)
        each.set_ylabel(title)
        each.legend()
    axes[1].set_yscale("log")
    axes[0].set_title(f"work at full size, simulated: the tile for {chip}, and a plain kernel")
    _name(axes[1], pairs)
    figure.savefig(path, dpi=110)


def plot_time(path: Path, rows: Sequence[dict[str, Any]], chips: Sequence[str]) -> None:
    """The plain kernel's predicted time over the product's, and the share of matrix work."""
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes: Sequence[Axes] = figure.subplots(2, 1, sharex=True)
    for chip in chips:
        pairs = _pairs(rows, chip)
        own, plain = ([pair[place]["predicted"][chip] for pair in pairs] for place in (0, 1))
        ratios = [b["milliseconds"] / a["milliseconds"] for a, b in zip(own, plain, strict=True)]
        axes[0].plot(ratios, "o", markersize=4, label=chip)
        axes[1].plot([time["matrix_share"] for time in own], "o", markersize=4, label=chip)
    axes[0].axhline(1.0, color="black", linewidth=0.8)
    axes[0].set_yscale("log")
    axes[0].set_ylabel("time of plain / flashmetal (log)")
    axes[1].set_ylabel("matrix work's share of flashmetal")
    axes[0].set_title("predicted by metalsim's time model, not measured")
    for each in axes:
        each.legend()
    _name(axes[1], _pairs(rows, chips[0]))
    figure.savefig(path, dpi=110)


def _pairs(
    rows: Sequence[dict[str, Any]], chip: str
) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What serves a workload on a chip and the plain kernel, of workloads that both can run."""
    plain = {row["workload"]: row for row in rows if row["kernel"] == "plain"}
    served = [row for row in rows if chip in row["serves"]]
    return [(row, plain[row["workload"]]) for row in served if row["workload"] in plain]


def _name(axes: Axes, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Every workload's name where they are few, else every fourth."""
    step = 1 if len(pairs) <= 40 else 4
    names = [pair[0]["workload"] for pair in pairs]
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=60, ha="right", fontsize=7)
