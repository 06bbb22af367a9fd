"""What a warm call costs on the host beside its kernel: calls whose engine or kernel does nothing.

Times are medians and minima over short batches; other work on the machine shows as the difference
between the two. Prints a table, writes nothing.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import flashmetal
from flashmetal import checks
from flashmetal.engines import portable, stock
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs

BATCH = 200  # calls between two looks at the clock
UNREAD = "the same, lengths unread as on MPS"
Call = Callable[[], Any]


def engine_of_nothing(
    problem: AttentionProblem, inputs: AttentionInputs, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes the outputs, as every engine must, and computes nothing."""
    q = inputs.q
    o = torch.empty_like(q) if out is None else out
    return o, q.new_empty(q.shape[:-1], dtype=torch.float32)


def runtime_of_nothing() -> Runtime:
    """The Metal engine whole, but for the launch: its kernels return at once."""
    library = SimpleNamespace(attention_forward=lambda *arguments, **launch: None)
    return Runtime(lambda source: library, device="cpu", gpu=Gpu.named("M1"))


def unread_lengths() -> AbstractContextManager[object]:
    """Lengths are those of a device, which a call does not wait for."""
    return patch.object(checks, "is_readable", lambda lengths, validate: False)


def measured_calls() -> dict[str, Call]:
    """The calls by name; the first is what the others contain of the engine's own."""
    q, k = torch.randn(1, 16, 8, 64), torch.randn(1, 16, 2, 64)
    starts = torch.tensor([0, 5, 16], dtype=torch.int32)
    lengths = starts, starts, 16, 16
    packed = q[0], k[0], k[0], *lengths
    sinks, slopes, bias = torch.randn(8), torch.rand(8), torch.zeros(1, 1, 1, 16)
    out, inputs = torch.empty_like(q[0]), AttentionInputs(q, k, k)
    problem = flashmetal.explain(q, k, k).problem
    options: dict[str, Any] = dict(
        window_size=(8, 0), softcap=30.0, alibi_slopes=slopes, s_aux=sinks, bias=bias
    )
    dense, varlen = flashmetal.flash_attn_func, flashmetal.flash_attn_varlen_func
    in_place = flashmetal.flash_attention_varlen
    return {
        "the engine of nothing alone": lambda: engine_of_nothing(problem, inputs),
        "dense, causal": lambda: dense(q, k, k, causal=True),
        "dense, all features": lambda: dense(q, k, k, **options),
        "varlen, causal": lambda: varlen(*packed, causal=True),
        "varlen, in place": lambda: in_place(out, *packed, True, 0.125, 1.0),
        "Metal engine, dense, causal": lambda: dense(q, k, k, causal=True, impl="metal"),
        "Metal engine, all features": lambda: dense(q, k, k, **options, impl="metal"),
        "Metal engine, varlen, causal": lambda: varlen(*packed, causal=True, impl="metal"),
        UNREAD: lambda: varlen(*packed, causal=True, impl="metal"),
    }


def microseconds(call: Call, batches: int) -> tuple[float, float]:
    """(median, minimum) of a call's time over all batches, in us."""
    times: list[float] = []
    for _ in range(batches + 1):
        start = time.perf_counter()
        for _ in range(BATCH):
            call()
        times.append((time.perf_counter() - start) / BATCH * 1e6)
    return statistics.median(times[1:]), min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=300, help=f"batches of {BATCH} calls")
    batches = parser.parse_args().batches
    title = f"Host cost of a warm call, torch {torch.__version__}, {platform.machine()}"
    table = Table("call", "median us", "minimum us", title=title)
    nothing = patch.object(portable, "forward", engine_of_nothing)
    nothing_stock = patch.object(stock, "forward", engine_of_nothing)
    # Refreshed by hand: a thread that redraws would be measured too.
    with nothing, nothing_stock, metal_runtime(runtime_of_nothing()):
        calls = measured_calls()
        with Progress(auto_refresh=False, transient=True) as progress:
            for name in progress.track(calls, description="measuring"):
                progress.refresh()
                with unread_lengths() if name == UNREAD else nullcontext():
                    median, least = microseconds(calls[name], batches)
                table.add_row(name, f"{median:.1f}", f"{least:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
