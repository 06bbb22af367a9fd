"""Writes docs/numbers.md from the results files: `python docs/scripts/write_numbers.py`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "numbers.md"
HEAD = """# Numbers

**Nothing here was measured on Apple hardware.** Times are of CPUs and NVIDIA GPUs, counts are
simulated. Every table is made from a results file in the repository; its script, machine and commit
stand below it. "dirty" means that the tree had changes that were not committed. Compare the figures
of one run only with each other.
"""
Row = Iterable[object]


def table(head: Row, rows: Iterable[Row]) -> str:
    """A table in markdown; all columns but the first to the right."""
    first, *others = ("| " + " | ".join(map(str, row)) + " |" for row in (head, *rows))
    return "\n".join([first, "| --- |" + " ---: |" * (first.count("|") - 2), *others])


def load(name: str) -> dict[str, Any]:
    """A results file, by its name without the ending."""
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def source(name: str, script: str, results: dict[str, Any]) -> str:
    """The line below a table: which script made it, on what, from which commit."""
    made = f"[`{name}.json`](../benchmarks/results/{name}.json)"
    made += f", made by [`{script}`](../benchmarks/{script})"
    machine = results.get("machine")
    if machine is None:
        return f"{made}; torch {results['torch']}. The file names neither machine nor commit."
    gpus = machine.get("gpus") or ([results["device"]] if "device" in results else [])
    device = ", ".join([*gpus, f"{machine['cpu']} with {machine['threads']} threads"])
    versions = f"torch {machine['torch']}, Python {machine['python']}"
    return f"{made}; {device}; {versions}; commit {machine['commit']}, {machine['date'][:10]}."


def times(rows: list[dict[str, Any]], contestants: tuple[str, ...]) -> str:
    """Median milliseconds by case and contestant."""
    head = ("case", "shape", "engine", *contestants)
    cells = (
        (
            *(row["case"], row["shape"], row["engine"]),
            *(f"{row['median_ms'][c]:.4g}" if c in row["median_ms"] else "-" for c in contestants),
        )
        for row in rows
    )
    return table(head, cells)


def engines() -> str:
    """Forward on a CPU."""
    results = load("engines")
    return "\n\n".join(
        [
            "## Forward on a CPU",
            "Median milliseconds of a call. `sdpa` is `F.scaled_dot_product_attention`.",
            times(results["speed"], ("flashmetal", "portable", "sdpa", "eager")),
            source("engines", "run.py", results),
        ]
    )


def training() -> str:
    """Forward and backward on a CPU."""
    results = load("training")
    return "\n\n".join(
        [
            "## Forward and backward on a CPU",
            "Median milliseconds of both together.",
            times(results["training"], ("flashmetal", "sdpa", "eager")),
            source("training", "training.py", results),
        ]
    )


def formats() -> str:
    """What quantised caches cost."""
    results = load("cache_formats")
    rows = (
        (
            f"{row['keys']} / {row['values']}",
            row["bytes_per_token"],
            f"{row['relative_rms_error_mean']:.2%}",
            f"{row['next_token_divergence_nats']:.2g}",
            f"{row['same_next_token']:.1%}",
        )
        for row in results["rows"]
    )
    head = ("keys / values", "bytes a token", "error", "divergence, nats", "same next token")
    link = "[serving](serving.md#what-the-formats-cost)"
    what = f"{results['model']}, {results['tokens']} tokens ({link})."
    made = source("cache_formats", "cache_formats.py", results)
    return "\n\n".join(["## Formats of caches", what, table(head, rows), made])


def distributed() -> str:
    """Two GPUs."""
    results = load("distributed")
    rows = (
        (
            row["attention"],
            row["seqlen"],
            row["ranks"],
            f"{row['milliseconds']:.4g}",
            f"{row['peak_bytes'] / 1e9:.3g}",
        )
        for row in results["rows"]
    )
    head = ("attention", "S", "ranks", "ms", "peak GB a rank")
    link = "[distributed](distributed.md#measured)"
    what = f"Forward and backward of one causal call in bfloat16 ({link})."
    made = source("distributed", "distributed.py", results)
    return "\n\n".join(["## Two NVIDIA GPUs", what, table(head, rows), made])


def at_full_size() -> str:
    """The Metal kernels on an NVIDIA GPU: errors and memory, no times."""
    results = load("nvidia_scale")
    rows = (
        (
            row["case"],
            f"{row['error']:.2g}",
            f"{row['torch_error']:.2g}" if "torch_error" in row else "-",
            f"{row['bytes'] / 2**20:.4g}",
        )
        for row in results["cases"]
    )
    what = (
        "The same Metal source, run by metalsim's CUDA engine. The error is the largest of sampled"
        " rows of the output against float64. These runs say nothing of time on a Mac."
    )
    made = source("nvidia_scale", "nvidia_scale.py", results)
    head = ("case", "error", "torch's error", "MiB beyond inputs and outputs")
    return "\n\n".join(["## The Metal kernels at full size", what, table(head, rows), made])


def counters() -> str:
    """What the Metal kernels do, counted in the simulator."""
    results = load("kernel_counters")
    rows = (
        (
            f"{row['case']}: {launch['kernel']}",
            row["gpu"],
            launch["threadgroup_bytes"],
            *(
                launch["counters"][name]
                for name in ("matrix_multiplies", "device_bytes_loaded", "threadgroup_barriers")
            ),
        )
        for row in results["rows"]
        for launch in row["launches"]
    )
    head = (
        *("case: kernel", "tiles of", "threadgroup bytes"),
        *("8x8 multiplies", "device bytes loaded", "barriers"),
    )
    what = "Counted in metalsim: work, not time. The inputs of each case are in the file."
    made = source("kernel_counters", "kernel_counters.py", results)
    return "\n\n".join(["## What the Metal kernels do (simulated)", what, table(head, rows), made])


def kernels() -> str:
    """The Metal kernels on real models' shapes: work and predicted times."""
    results = load("kernels")
    chips = ("M1 Max", "M3 Max", "M4", "M5 Max")
    workloads: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        workloads.setdefault(row["workload"], []).append(row)
    rows: list[Row] = []
    for name, found in workloads.items():
        served = [next(row for row in found if chip in row["serves"]) for chip in chips]
        plain = next((row for row in found if row["kernel"] == "plain"), None)
        times = (_predicted(row, plain, chip) for row, chip in zip(served, chips, strict=True))
        over = (served[0][f"{what}_over_least"] for what in ("multiplies", "device_bytes"))
        rows.append((name, *(f"{x:.2f}" for x in over), *times))
    what = (
        "Milliseconds that metalsim's time model predicts for the tile of the plan, the share of"
        " them that is matrix work, and how many times longer a plain FlashAttention-2 kernel takes"
        " ([the model's errors](../metalsim/docs/time_model.md)). Multiplies and bytes are of M1"
        " Max's tile, over the least that any kernel needs. Other tiles are in the file; plots:"
        " [work](../benchmarks/results/kernels_work.png),"
        " [time](../benchmarks/results/kernels_time.png)."
    )
    if results["only"]:
        what += f" Of the workloads only those named like {', '.join(results['only'])} were run."
    parts = [
        "## The Metal kernels in real models (simulated)",
        f"{results['simulated']} {what}",
        table(("workload", "multiplies", "bytes", *chips), rows),
        source("kernels", "kernels.py", results),
    ]
    return "\n\n".join(parts)


def _predicted(row: dict[str, Any], plain: dict[str, Any] | None, chip: str) -> str:
    own = row["predicted"][chip]
    longer = "-"
    if plain is not None:
        longer = f"{plain['predicted'][chip]['milliseconds'] / own['milliseconds']:.1f}x"
    return f"{own['milliseconds']:.3g} ({own['matrix_share']:.0%}, {longer})"


def simulator() -> str:
    """metalsim itself."""
    cost, speed = load("check_cost"), load("simulated_speed")
    checks = table(
        ("checks", "seconds", "times fast"),
        ((row["mode"], row["seconds"], row["times_fast"]) for row in cost["rows"]),
    )
    speeds = table(
        ("tiles of", "seconds to compile", "GFLOP/s simulated"),
        ((r["tiles_for"], r["compile_seconds"], r["gflop_per_second"]) for r in speed["rows"]),
    )
    return "\n\n".join(
        [
            "## metalsim's own speed",
            checks,
            source("check_cost", "check_cost.py", cost),
            speeds,
            source("simulated_speed", "simulated_speed.py", speed),
        ]
    )


def page() -> str:
    """The whole page."""
    parts = (engines, training, formats, distributed, at_full_size, counters, kernels, simulator)
    return "\n\n".join([HEAD.strip(), *(part() for part in parts)]) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
