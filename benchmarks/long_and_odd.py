"""One head of a long sequence in a narrow window with sinks: seconds and peak memory of a call.

The Metal kernel runs in the simulator and the portable engine on this CPU, each length in a process
of its own. Writes benchmarks/results/long_and_odd.json. Seconds are of this machine and its load,
and say nothing about an Apple GPU; memory beside the inputs and results should not grow.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import torch
from report import machine
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import metalsim
from flashmetal.engines import metal, portable
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs
from flashmetal.testing import assert_matches_reference, make_inputs
from flashmetal.tools.bench.memory import forget_peak, resident_peak

RESULTS = Path(__file__).parent / "results" / "long_and_odd.json"
ENGINES = ("metal", "portable")  # metal in metalsim, tiles of M1
SEQLENS = (32_768, 131_072)
CALL = {"heads_q": 1, "head_dim": 64, "window_left": 128, "window_right": 0, "sinks": True}


def build(seqlen: int) -> tuple[AttentionProblem, AttentionInputs]:
    """The problem and its tensors."""
    return make_inputs(**CALL, seqlen_q=seqlen, dtype=torch.float16)


def measure(name: str, seqlen: int) -> dict[str, float]:
    """Seconds and bytes of one call, whose last rows are compared with the float64 reference."""
    engine = {"metal": metal, "portable": portable}[name]
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", Gpu.named("M1"))):
        engine.forward(*build(4096))  # compiles, and starts threads
        problem, inputs = build(seqlen)
        forget_peak()
        before, start = resident_peak(), time.perf_counter()
        o, lse = engine.forward(problem, inputs)
        seconds = time.perf_counter() - start
    above = max(resident_peak() - before - o.nbytes - lse.nbytes, 0)
    # What the last rows see is among the last keys: alone they have the same answer.
    tail = inputs._replace(q=inputs.q[:, -200:], k=inputs.k[:, -400:], v=inputs.v[:, -400:])
    short = problem._replace(seqlen_q=200, seqlen_k=400)
    assert_matches_reference(o[:, -200:].contiguous(), lse[..., -200:], short, tail)
    return {"seconds": seconds, "bytes_beside_inputs_and_results": above}


def in_a_process(name: str, seqlen: int) -> dict[str, float]:
    """:func:`measure` in a process of its own."""
    command = [sys.executable, __file__, name, str(seqlen)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure all, print a table and write the file."""
    cases = [(name, seqlen) for name in ENGINES for seqlen in SEQLENS]
    rows = [
        {"engine": name, "seqlen": seqlen, **in_a_process(name, seqlen)}
        for name, seqlen in track(cases, "measuring")
    ]
    table = Table("engine", "seqlen", "seconds", "MiB beside inputs and results", box=box.SIMPLE)
    for row in rows:
        mib = row["bytes_beside_inputs_and_results"] / 2**20
        table.add_row(row["engine"], str(row["seqlen"]), f"{row['seconds']:.1f}", f"{mib:.1f}")
    Console().print(table)
    record = {"machine": machine(), "call": {**CALL, "dtype": "float16"}, "rows": rows}
    RESULTS.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))))
    else:
        main()
