"""What a warm call costs on the host beside its kernel: a call whose engine does nothing.

Times are medians and minima over short batches, so that other work on the machine shows as the
difference between the two. Prints a table; nothing is written.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import flashmetal
from flashmetal.engines import portable, stock
from flashmetal.problem import AttentionInputs

BATCH = 200  # calls between two looks at the clock


def microseconds(call: Callable[[], Any], batches: int, name: str) -> tuple[float, float]:
    """(median, minimum) of a call's time over all batches, in us."""
    times: list[float] = []
    for _ in range(BATCH):
        call()
    for _ in track(range(batches), description=name, transient=True):
        start = time.perf_counter()
        for _ in range(BATCH):
            call()
        times.append((time.perf_counter() - start) / BATCH * 1e6)
    return statistics.median(times), min(times)


def calls() -> dict[str, Callable[[], Any]]:
    """The public calls that are measured, by name."""
    q, k = torch.randn(1, 16, 8, 64), torch.randn(1, 16, 2, 64)
    starts = torch.tensor([0, 5, 16], dtype=torch.int32)
    packed_q, packed_k = q[0], k[0]
    sinks, slopes, bias = torch.randn(8), torch.rand(8), torch.zeros(1, 1, 1, 16)
    out = torch.empty_like(packed_q)
    return {
        "dense, causal": lambda: flashmetal.flash_attn_func(q, k, k, causal=True),
        "dense, all features": lambda: flashmetal.flash_attn_func(
            q, k, k, window_size=(8, 0), softcap=30.0, alibi_slopes=slopes, s_aux=sinks, bias=bias
        ),
        "varlen, causal": lambda: flashmetal.flash_attn_varlen_func(
            packed_q, packed_k, packed_k, starts, starts, 16, 16, causal=True
        ),
        "varlen, in place": lambda: flashmetal.flash_attention_varlen(
            out, packed_q, packed_k, packed_k, starts, starts, 16, 16, True, 0.125, 1.0
        ),
    }


def nothing(
    problem: Any, inputs: Any, out: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """An engine that computes nothing: it only makes its outputs, as every engine must."""
    q = inputs.q
    o = torch.empty_like(q) if out is None else out
    return o, q.new_empty(q.shape[:-1], dtype=torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batches", type=int, default=300, help=f"batches of {BATCH} calls")
    batches = parser.parse_args().batches
    table = Table(
        title=f"Host cost of a warm call, torch {torch.__version__}, {platform.machine()}"
    )
    for column in ("call", "median us", "minimum us"):
        table.add_column(column, justify="left" if column == "call" else "right")
    q = torch.randn(1, 16, 8, 64)
    inputs = AttentionInputs(q, q, q)
    with patch.object(portable, "forward", nothing), patch.object(stock, "forward", nothing):
        for name, call in calls().items():
            median, least = microseconds(call, batches, name)
            table.add_row(name, f"{median:.1f}", f"{least:.1f}")
    median, least = microseconds(lambda: nothing(None, inputs), batches, "the engine alone")
    table.add_row("of which the engine that does nothing", f"{median:.1f}", f"{least:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
