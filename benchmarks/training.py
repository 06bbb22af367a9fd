"""Forward and backward side by side in one run: flashmetal, SDPA under autograd, eager.

    python benchmarks/training.py [--cases NAME ...] [--repeats 9] [--results DIR]

Before a case is timed, the gradients of the same call cut to CHECKED rows are held against the
float64 oracle, and the rivals' against them. Repetitions are interleaved. Prints a table and writes
training.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cases import CAUSAL, UNEVEN, Case
from report import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import flashmetal
from flashmetal.bench.contestants import Padded, additive_mask, as_padded, eager, sdpa_call
from flashmetal.gradients import Gradients
from flashmetal.plan import plan
from flashmetal.problem import AttentionInputs, AttentionProblem
from flashmetal.testing import assert_gradients_match_reference

CHECKED = 512
_SECONDS_EACH = 20.0
_LEAST_REPEATS = 3
_EQUAL = {"sdpa": 0.9}
_BANDED = {"eager": 3.0}

CASES = (
    Case("full", "ViT, Whisper", 2048, targets=_EQUAL),
    Case("causal", "GPT-2", 2048, window=CAUSAL, targets=_EQUAL),
    Case("causal, GQA", "Llama 3.2 1B", 2048, heads_k=2, window=CAUSAL),
    Case("window 128", "gpt-oss", 8192, heads_q=2, heads_k=2, window=(127, 0), targets=_BANDED),
    Case("varlen, 16 uneven", "BERT", heads_q=12, heads_k=12, lengths=UNEVEN, targets=_BANDED),
    Case("softcap, causal", "Gemma 2", 2048, softcap=50.0, window=CAUSAL),
    Case("sinks, causal", "gpt-oss", 2048, sinks=True, window=CAUSAL),
    Case("ALiBi, causal", "BLOOM, MPT", 2048, alibi=True, window=CAUSAL),
    Case("additive bias", "T5", 2048, bias=True),
)

Step = Callable[[], tuple[Tensor, ...]]


def steps(problem: AttentionProblem, inputs: AttentionInputs, rivals: bool) -> dict[str, Step]:
    """What gives o and the gradients of q, k and v, packed as the inputs are, by contestant."""
    padded = as_padded(problem, inputs)
    leaves = [x.detach().clone().requires_grad_() for x in inputs[:3]]
    found = {"flashmetal": _step(leaves, lambda q, k, v: _ours(problem, inputs, q, k, v))}
    if not rivals:
        return found
    theirs = [x.detach().clone().requires_grad_() for x in padded[:3]]
    mask = additive_mask(problem, inputs)

    def eager_call(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        given = Padded(q, k, v, padded.lengths)
        return given.pack(eager(problem, given, mask, inputs))

    def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa_call(problem, Padded(q, k, v, padded.lengths), mask)()[0]

    found["eager"] = _step(theirs, eager_call, padded)
    if not problem.softcap and not problem.sinks:
        found["sdpa"] = _step(theirs, sdpa, padded)
    return found


def _ours(
    problem: AttentionProblem, inputs: AttentionInputs, q: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    options: dict[str, Any] = {
        "softmax_scale": problem.scale,
        "window_size": (problem.window_left, problem.window_right),
        "softcap": problem.softcap,
        "alibi_slopes": inputs.alibi_slopes,
        "bias": inputs.bias,
        "s_aux": inputs.sinks,
    }
    if problem.layout == "dense":
        return flashmetal.flash_attn_func(q, k, v, **options)
    lengths = problem.seqlen_q, problem.seqlen_k
    starts = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    return flashmetal.flash_attn_varlen_func(q, k, v, *starts, *lengths, **options)


def _step(leaves: list[Tensor], call: Callable[..., Tensor], padded: Padded | None = None) -> Step:
    def step() -> tuple[Tensor, ...]:
        o = call(*leaves)
        generator = torch.Generator().manual_seed(1)
        grad_o = torch.randn(o.shape, generator=generator)
        grads = torch.autograd.grad(o, leaves, grad_o)
        return o.detach(), *(grads if padded is None else map(padded.pack, grads))

    return step


def check(case: Case) -> None:
    """AssertionError unless the gradients of the case, cut short, are right."""
    lengths = tuple(min(length, CHECKED) for length in case.lengths[:4])
    rows = min(case.seqlen_q, CHECKED)
    problem, inputs = dataclasses.replace(case, seqlen_q=rows, lengths=lengths).build()
    found = {name: step() for name, step in steps(problem, inputs, True).items()}
    o, *grads = found["flashmetal"]
    grad_o = torch.randn(o.shape, generator=torch.Generator().manual_seed(1))
    ours = Gradients(*[x.contiguous() for x in grads])
    assert_gradients_match_reference(ours, problem, inputs, grad_o, None)
    for name, results in found.items():
        for actual, expected in zip(results, found["flashmetal"], strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-3, atol=1e-4, msg=name)


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Check, then time: milliseconds and ratios by contestant."""
    check(case)
    problem, inputs = case.build()
    field, left = steps(problem, inputs, True), {}
    for name, step in field.items():
        start = time.perf_counter()
        step()
        elapsed = time.perf_counter() - start
        left[name] = max(_LEAST_REPEATS, min(repeats, int(_SECONDS_EACH / elapsed)))
    times: dict[str, list[float]] = {name: [] for name in field}
    while any(left.values()):
        for name in [name for name in field if left[name]]:
            left[name] -= 1
            start = time.perf_counter()
            field[name]()
            times[name].append(1e3 * (time.perf_counter() - start))
    ratios = {
        name: statistics.median(
            rival / own for rival, own in zip(times[name], times["flashmetal"], strict=False)
        )
        for name in times
    }
    chosen = plan(problem._replace(needs_grad=True))
    return {
        "case": case.name,
        "like": case.like,
        "shape": case.shape(),
        "engine": chosen.engine,
        "backward": chosen.backward,
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "min_ms": {name: min(values) for name, values in times.items()},
        "repeats": {name: len(values) for name, values in times.items()},
        "speedups": ratios,
        "targets": case.targets,
        "reached": {name: ratios[name] >= case.targets[name] for name in case.targets},
    }


def main() -> None:
    """Measure, print, and write the results."""
    parser = argparse.ArgumentParser(description="time forward and backward")
    parser.add_argument("--cases", nargs="+", help="only the cases of these names")
    parser.add_argument("--repeats", type=int, default=9, help="most repetitions of one call")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="where files go"
    )
    options = parser.parse_args()
    console = Console()
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    rows = [measure(case, options.repeats) for case in track(chosen, console=console)]
    table = Table("case", "engines", "flashmetal", "sdpa", "eager", title="forward + backward, ms")
    for row in rows:
        times = row["median_ms"]
        rivals = [
            f"{times[name]:.0f} ({row['speedups'][name]:.2f}x)" if name in times else ""
            for name in ("sdpa", "eager")
        ]
        engines = f"{row['engine']}, {row['backward']}"
        table.add_row(row["case"], engines, f"{times['flashmetal']:.0f}", *rivals)
    console.print(table)
    missed = [row["case"] for row in rows if not all(row["reached"].values())]
    if missed:
        console.print(f"[red]Target missed:[/red] {', '.join(missed)}")
    options.results.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine(), "training": rows}
    (options.results / "training.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    if "OMP_WAIT_POLICY" not in os.environ:
        # OpenMP reads it when torch is loaded, so the process starts again.
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.execv(sys.executable, [sys.executable, *sys.argv])
    main()
