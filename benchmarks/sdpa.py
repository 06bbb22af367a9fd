"""scaled_dot_product_attention on CPU tensors, as it is and with flashmetal installed, in one run.

    python benchmarks/sdpa.py [--cases NAME ...] [--repeats 15] [--results DIR]

The two take turns. Each case names the rule that decides it; where that leaves the call to PyTorch
the ratio is the price of asking. Before a case is timed, its output is held against the other's in
float64. Prints a table and writes sdpa.json.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from report import options_of, wait_passively, write_results
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flashmetal.integrations import sdpa
from flashmetal.testing import error_budget

_SHORT = 0.02  # seconds: shorter calls are repeated to fill as much


class Case(NamedTuple):
    """Query (1, 8, rows, 64) and keys of ``heads_k`` heads."""

    name: str
    rows: int
    keys: int
    heads_k: int = 8
    head_dim_v: int = 64
    training: bool = False
    learned_mask: bool = False
    options: Mapping[str, Any] = MappingProxyType({})

    def tensors(self) -> list[Tensor]:
        shapes = (8, self.rows, 64), (self.heads_k, self.keys, 64)
        shapes = *shapes, (self.heads_k, self.keys, self.head_dim_v)
        tensors = [torch.randn(1, *shape, requires_grad=self.training) for shape in shapes]
        if self.learned_mask:
            tensors.append(torch.randn(8, self.rows, self.keys, requires_grad=True))
        return tensors


CASES = (
    Case("tiny", 16, 16),
    Case("causal, square", 1024, 1024, options=dict(is_causal=True)),
    Case("training", 1024, 1024, training=True),
    Case("wide values", 1024, 1024, head_dim_v=128),
    Case("wide values, training", 1024, 1024, head_dim_v=128, training=True),
    Case("learned mask, training", 1024, 1024, training=True, learned_mask=True),
    Case("grouped decode", 1, 16384, heads_k=2, options=dict(enable_gqa=True)),
    Case("dropout", 1024, 1024, options=dict(dropout_p=0.1)),
)


def step(tensors: list[Tensor], options: Mapping[str, Any]) -> Tensor:
    """The output; of a training case the gradients are taken as well."""
    out = scaled_dot_product_attention(*tensors, **options)
    if out.requires_grad:
        torch.autograd.grad(out.sum(), tensors)
    return out.detach()


def check(case: Case, tensors: list[Tensor]) -> None:
    """AssertionError unless the output with flashmetal installed is right."""
    if "dropout_p" in case.options:
        return
    with sdpa.installed(devices=("cpu",)):
        out = step(tensors, case.options)
    with sdpa_kernel(SDPBackend.MATH):
        eager = step(tensors, case.options)
        exact = step([x.double() for x in tensors], case.options)
    error, budget = float((out.double() - exact).abs().max()), error_budget(eager, exact)
    assert error <= budget, f"{case.name}: error {error:.2e}, budget {budget:.2e}"


def measure(case: Case, repeats: int) -> dict[str, Any]:
    """Check, then time both in turn: milliseconds a call, and the median ratio of the pairs."""
    torch.manual_seed(0)
    tensors = case.tensors()
    check(case, tensors)
    start = time.perf_counter()
    step(tensors, case.options)
    calls = 1 + int(_SHORT / (time.perf_counter() - start))
    ways: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "pytorch": nullcontext,
        "installed": partial(sdpa.installed, devices=("cpu",)),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            with way():
                start = time.perf_counter()
                for _ in range(calls):
                    step(tensors, case.options)
                elapsed = 1e3 * (time.perf_counter() - start) / calls
            if turn:  # the first is warm-up
                times[name].append(elapsed)
    verdict = sdpa.explain(*tensors, **case.options)
    pairs = zip(times["pytorch"], times["installed"], strict=True)
    return {
        "case": case.name,
        "verdict": verdict._asdict(),
        "median_ms": {name: statistics.median(values) for name, values in times.items()},
        "min_ms": {name: min(values) for name, values in times.items()},
        "speedup": statistics.median(stock / ours for stock, ours in pairs),
    }


def main() -> None:
    """Measure, print, and write the results."""
    options = options_of("time scaled_dot_product_attention", repeats=15).parse_args()
    chosen = [case for case in CASES if not options.cases or case.name in options.cases]
    console = Console()
    rows = [measure(case, options.repeats) for case in track(chosen, console=console)]
    table = Table("case", "served by", "rule", "PyTorch", "installed", "speed-up", title="ms")
    for row in rows:
        verdict, times = row["verdict"], row["median_ms"]
        served = "flashmetal" if verdict["flashmetal"] else "PyTorch"
        cells = [f"{times[name]:.3f}" for name in times]
        table.add_row(row["case"], served, verdict["rule"], *cells, f"{row['speedup']:.2f}x")
    console.print(table)
    write_results(options.results, "sdpa", {"sdpa": rows})


if __name__ == "__main__":
    wait_passively()
    main()
