"""Time and memory of one causal attention spread over ranks, beside the same on one rank.

    python benchmarks/distributed.py [--device cuda] [--ranks 2] [--seqlens 16384 131072]

The ranks are processes of this machine, a GPU each where there are GPUs (NCCL), else on its CPU
(gloo). Before anything is timed the forward and backward of CHECKED rows are held against the
float64 oracle. A time is that of the slowest rank, forward and backward; memory is the peak that
torch allocated on the rank that allocated most. Prints a table and writes distributed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from report import machine
from rich.console import Console
from rich.table import Table
from torch import Tensor

import flashmetal
from flashmetal import distributed
from flashmetal.gradients import Gradients
from flashmetal.testing import (
    assert_gradients_match_reference,
    assert_matches_reference,
    make_inputs,
    make_output_gradients,
)

CHECKED = 512
PATIENCE = timedelta(seconds=120)
ATTENTIONS = ("ring", "ulysses")
Call = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def call_of(attention: str) -> Call:
    if attention == "one rank":
        return lambda q, k, v: flashmetal.flash_attn_func(q, k, v, causal=True, return_lse=True)
    return lambda q, k, v: distributed.flash_attn_func(
        q, k, v, causal=True, method=attention, return_lse=True
    )


def check(attention: str, options: argparse.Namespace, device: torch.device) -> None:
    """AssertionError unless a short call is right, its results gathered from the ranks."""
    shape = {"heads_q": options.heads_q, "heads_k": options.heads_k, "head_dim": options.head_dim}
    problem, inputs = make_inputs(
        seqlen_q=CHECKED, **shape, dtype=dtype_of(device), device=str(device), window_right=0
    )
    rows = distributed.local_rows(CHECKED, device=device)
    leaves = [x[:, rows].detach().requires_grad_() for x in inputs[:3]]
    o, lse = call_of(attention)(*leaves)
    whole = torch.empty(inputs.q.shape, dtype=o.dtype, device="cpu")
    grads = make_output_gradients(whole, torch.empty((*lse.shape[:2], CHECKED)))
    arriving = grads[0].to(device)[:, rows], grads[1].to(device)[..., rows]
    torch.autograd.backward((o, lse), arriving)
    found = [gathered(x, rows, 1) for x in (o, *(x.grad for x in leaves))]
    full_lse = gathered(lse, rows, 2)
    if dist.get_rank() == 0:
        assert_matches_reference(found[0], full_lse, problem, inputs)
        assert_gradients_match_reference(Gradients(*found[1:]), problem, inputs, *grads)


def gathered(x: Tensor, rows: Tensor, dim: int) -> Tensor:
    """The whole of a tensor, from the equal shares of all ranks."""
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    places = [torch.empty_like(rows) for _ in parts]
    dist.all_gather(parts, x.detach().contiguous())
    dist.all_gather(places, rows)
    whole = torch.cat(parts, dim)
    return torch.empty_like(whole).index_copy_(dim, torch.cat(places), whole)


def measure(
    attention: str, seqlen: int, options: argparse.Namespace, device: torch.device
) -> dict[str, Any]:
    """Milliseconds of forward and backward, and the most bytes a rank held."""
    alone = attention == "one rank"
    rows = seqlen if alone else seqlen // dist.get_world_size()
    times: list[float] = []
    peak = 0
    if not alone or dist.get_rank() == 0:
        shapes = [
            (1, rows, heads, options.head_dim) for heads in (options.heads_q, options.heads_k)
        ]
        leaves = [
            torch.randn(shape, dtype=dtype_of(device), device=device, requires_grad=True)
            for shape in (shapes[0], shapes[1], shapes[1])
        ]
        grad_o, call = torch.randn_like(leaves[0]), call_of(attention)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        for _ in range(options.repeats + 1):
            synchronise(device, alone)
            start = time.perf_counter()
            torch.autograd.grad(call(*leaves)[0], leaves, grad_o)
            synchronise(device, True)
            times.append(1e3 * (time.perf_counter() - start))
        peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else 0
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (times[1:], peak))
    slowest = [max(x) for x in zip(*(times for times, _ in found if times), strict=True)]
    return {
        "attention": attention,
        "seqlen": seqlen,
        "ranks": 1 if alone else dist.get_world_size(),
        "milliseconds": statistics.median(slowest),
        "fastest": min(slowest),
        "slowest": max(slowest),
        "peak_bytes": max(peak for _, peak in found),
    }


def synchronise(device: torch.device, alone: bool) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
    if not alone:
        dist.barrier()


def dtype_of(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def run(rank: int, options: argparse.Namespace, folder: str) -> None:
    """One rank."""
    device = torch.device(options.device, rank) if options.device == "cuda" else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // options.ranks))
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        init_method=f"file://{folder}/store",
        rank=rank,
        world_size=options.ranks,
        timeout=PATIENCE,
    )
    for attention in ATTENTIONS:
        check(attention, options, device)
    rows = [
        measure(attention, seqlen, options, device)
        for seqlen in options.seqlens
        for attention in ("one rank", *ATTENTIONS)
    ]
    if rank == 0:
        report(rows, options, device)
    dist.destroy_process_group()


def report(rows: list[dict[str, Any]], options: argparse.Namespace, device: torch.device) -> None:
    table = Table("S", "attention", "ranks", "ms", "GB a rank", title="causal, forward + backward")
    for row in rows:
        memory = f"{row['peak_bytes'] / 1e9:.2f}" if row["peak_bytes"] else "-"
        cells = f"{row['seqlen']}", row["attention"], f"{row['ranks']}"
        table.add_row(*cells, f"{row['milliseconds']:.1f}", memory)
    Console().print(table)
    facts = machine()
    if device.type == "cuda":
        facts["gpus"] = [torch.cuda.get_device_name(i) for i in range(options.ranks)]
        facts["cuda"] = torch.version.cuda
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    call = {name: getattr(options, name) for name in ("heads_q", "heads_k", "head_dim", "repeats")}
    results = {"machine": facts, "call": {**call, "dtype": str(dtype_of(device))}, "rows": rows}
    options.results.mkdir(parents=True, exist_ok=True)
    path = options.results / "distributed.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    Console().print(f"wrote {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    has_gpu = torch.cuda.is_available()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if has_gpu else "cpu")
    parser.add_argument("--ranks", type=int, default=torch.cuda.device_count() or 2)
    parser.add_argument(
        "--seqlens", type=int, nargs="+", default=[16384, 131072] if has_gpu else [4096]
    )
    parser.add_argument("--heads-q", type=int, default=32 if has_gpu else 8)
    parser.add_argument("--heads-k", type=int, default=8 if has_gpu else 2)
    parser.add_argument("--head-dim", type=int, default=128 if has_gpu else 64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (options, folder), nprocs=options.ranks)


if __name__ == "__main__":
    main()
