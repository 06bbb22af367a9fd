"""Times the simulator on the forward kernel: B1 H2 S1024 D64 fp16, and a cold compile of it.

Writes benchmarks/results/simulated_speed.json. It says how long the tests take, and nothing about a
GPU.
"""

from __future__ import annotations

import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from report import machine
from rich.console import Console

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.testing import make_inputs

RESULTS = Path(__file__).parent / "results" / "simulated_speed.json"
SEQLEN, HEADS, HEAD_DIM = 1024, 2, 64
REPEATS = 9


def measure(gpu: str, cache_dir: str) -> dict[str, Any]:
    """Seconds to compile from nothing, and the best of some launches as GFLOP/s (4 S S D H)."""
    compile_seconds: list[float] = []

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        start = time.perf_counter()
        library = metalsim.compile_shader(source, cache_dir=cache_dir)
        compile_seconds.append(time.perf_counter() - start)
        return library

    problem, inputs = make_inputs(
        seqlen_q=SEQLEN, heads_q=HEADS, head_dim=HEAD_DIM, dtype=torch.float16
    )
    seconds: list[float] = []
    with metal_runtime(Runtime(compile_shader, "cpu", Gpu.named(gpu))):
        metal.forward(problem, inputs)
        for _ in range(REPEATS):
            start = time.perf_counter()
            metal.forward(problem, inputs)
            seconds.append(time.perf_counter() - start)
    flop = 4 * SEQLEN * SEQLEN * HEAD_DIM * HEADS
    return {
        "tiles_for": gpu,
        "compile_seconds": round(compile_seconds[0], 2),
        "gflop_per_second": round(flop / min(seconds) / 1e9, 2),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as cache_dir:
        metalsim.compile_shader("kernel void warm() {}", cache_dir=cache_dir)  # builds the machine
        rows = [measure(gpu, cache_dir) for gpu in ("M1", "M3")]
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    for row in rows:
        Console().print(row)


if __name__ == "__main__":
    main()
