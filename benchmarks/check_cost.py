"""What the simulator's checkers cost: a forward launch with each, over the same launch without.

`python benchmarks/check_cost.py` writes benchmarks/results/check_cost.json. B=1, H=2, S=512, D=64,
float16, the tile kernel, one OS thread in all modes, best of some launches.
"""

from __future__ import annotations

import json
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

RESULTS = Path(__file__).parent / "results" / "check_cost.json"
SEQLEN, HEADS, HEAD_DIM = 512, 2, 64
REPEATS = 5
MODES: dict[str, bool | tuple[str, ...]] = {
    "fast": False,
    "counters": (),
    "races": ("races",),
    "bounds": ("bounds",),
    "uninitialized": ("uninitialized",),
    "alignment": ("alignment",),
    "all": True,
}


def seconds(check: bool | tuple[str, ...]) -> float:
    """The best launch, in seconds."""

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(source, check=check)

    problem, inputs = make_inputs(
        seqlen_q=SEQLEN, heads_q=HEADS, head_dim=HEAD_DIM, dtype=torch.float16
    )
    taken: list[float] = []
    with (
        metal_runtime(Runtime(compile_shader, "cpu", Gpu.named("M1"))),
        metalsim.schedule(workers=1),
    ):
        metal.forward(problem, inputs)
        for _ in range(REPEATS):
            start = time.perf_counter()
            metal.forward(problem, inputs)
            taken.append(time.perf_counter() - start)
    return min(taken)


def main() -> None:
    times = {name: seconds(check) for name, check in MODES.items()}
    rows: list[dict[str, Any]] = [
        {"mode": name, "seconds": round(taken, 4), "times_fast": round(taken / times["fast"], 2)}
        for name, taken in times.items()
    ]
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    for row in rows:
        Console().print(row)


if __name__ == "__main__":
    main()
