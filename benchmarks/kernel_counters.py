"""Counts what the Metal forward kernel does, in the simulator, beside the least it could do.

Writes benchmarks/results/forward_counters.json and prints the same as a table. Counts are exact and
say nothing about time; bytes are those the host compiler left after optimising.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import machine
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.testing import make_inputs
from flashmetal.tiles import Tile, tile_of

RESULTS = Path(__file__).parent / "results" / "forward_counters.json"
GPUS = ("M1", "M3")


class Case(NamedTuple):
    name: str
    seqlen: int
    head_dim: int
    window: dict[str, int]
    dtype: torch.dtype = torch.float16


CASES = (
    Case("full", 256, 64, {}),
    Case("causal", 256, 64, {"window_right": 0}),
    Case("D=128", 256, 128, {}),
    Case("D=256", 256, 256, {}),
    Case("fp32", 256, 64, {}, torch.float32),
    Case("window 128", 16_384, 64, {"window_left": 128, "window_right": 0}),
)
HEADS = 2


def count(case: Case, gpu: str) -> dict[str, Any]:
    """The counters of one launch, with the tile and the bounds they are held against."""
    problem, inputs = make_inputs(
        seqlen_q=case.seqlen,
        seqlen_k=case.seqlen,
        heads_q=HEADS,
        heads_k=HEADS,
        head_dim=case.head_dim,
        dtype=case.dtype,
        **case.window,
    )
    launched: list[metalsim.Kernel] = []

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        library = metalsim.compile_shader(source, check=True)
        launched.append(library.attention_forward)
        return library

    with metal_runtime(Runtime(compile_shader, "cpu", Gpu.named(gpu))):
        metal.forward(problem, inputs)
    tile = tile_of(
        "forward", Gpu.named(gpu).family, case.dtype.itemsize, case.head_dim, case.head_dim
    )
    return {
        "case": case.name,
        "gpu": gpu,
        "dtype": str(case.dtype).removeprefix("torch."),
        "seqlen": case.seqlen,
        "heads": HEADS,
        "head_dim": case.head_dim,
        "tile": tile._asdict(),
        "least_matrix_multiplies": least_multiplies(case, tile),
        "least_device_bytes_loaded": 3 * HEADS * case.seqlen * case.head_dim * case.dtype.itemsize,
        "counters": launched[0].counters,
    }


def least_multiplies(case: Case, tile: Tile) -> int:
    """8x8x8 multiplies of the tiles that the band touches, two products each."""
    left, right = (case.window.get(side, -1) for side in ("window_left", "window_right"))
    blocks = 0
    for first in range(0, case.seqlen, tile.owned):
        last = min(first + tile.owned, case.seqlen) - 1
        begin = max(first - left, 0) if left >= 0 else 0
        end = min(last + right + 1, case.seqlen) if right >= 0 else case.seqlen
        blocks += -(-end // tile.streamed) - begin // tile.streamed
    fragments = (tile.owned // 8) * (tile.streamed // 8)
    return HEADS * blocks * fragments * 2 * (case.head_dim // 8)


def show(rows: list[dict[str, Any]]) -> None:
    table = Table(
        title="Metal forward kernel as the simulator counts it", box=box.SIMPLE, pad_edge=False
    )
    table.padding = (0, 1, 0, 0)
    for column in ("case", "tile"):
        table.add_column(column, no_wrap=True)
    for column in ("8x8x8", "/ least", "device MB", "group MB", "barriers"):
        table.add_column(column, justify="right", no_wrap=True)
    table.caption = "MB read + written; group: threadgroup memory; least: the visible tiles"
    for row in rows:
        counters, tile = row["counters"], Tile(**row["tile"])
        table.add_row(
            row["case"],
            f"{row['gpu']} {tile.owned}x{tile.streamed}",
            f"{counters['matrix_multiplies']:,}",
            f"{counters['matrix_multiplies'] / row['least_matrix_multiplies']:.2f}",
            _megabytes(counters, "device"),
            _megabytes(counters, "threadgroup"),
            f"{counters['threadgroup_barriers']:,}",
        )
    Console().print(table)


def _megabytes(counters: dict[str, int], space: str) -> str:
    loaded, stored = (counters[f"{space}_bytes_{way}"] / 1e6 for way in ("loaded", "stored"))
    return f"{loaded:.2f} + {stored:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    work = [(case, gpu) for case in CASES for gpu in GPUS]
    rows = [count(case, gpu) for case, gpu in track(work, description="simulating")]
    output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
