"""The Metal kernels at full size on an NVIDIA GPU, by metalsim's second engine: are they right?

`python benchmarks/nvidia_scale.py` writes benchmarks/results/nvidia_scale.json: for each case the
largest error of sampled rows against float64, that of torch's own attention beside it, and the
memory beyond inputs and outputs. Seconds are there to see that it ran; they say nothing of a Mac.
`--compile` only fills metalsim's cache, on a machine with a compiler, for one that has none.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import machine
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

import flashmetal
import metalsim
from flashmetal.cache.formats import dequantise, quantise
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime

RESULTS = Path(__file__).parent / "results" / "nvidia_scale.json"
SAMPLED_ROWS = 64
SPLITS = 16
PAGE = 64


class Case(NamedTuple):
    """One call. ``length`` is of queries, or of the keys of a decode."""

    name: str
    length: int
    head_dim: int
    kind: str = "forward"  # backward, decode, strided, uneven
    window: tuple[int, int] = (-1, -1)
    sinks: bool = False
    cache_format: str = ""  # of a decode in pages; "" is one contiguous cache


MASKS: dict[str, tuple[tuple[int, int], bool]] = {
    "full": ((-1, -1), False),
    "causal": ((-1, 0), False),
    "window 128, sinks": ((128, 0), True),
}
CASES = (
    *(
        Case(f"{mask}, S={length}, D={head_dim}", length, head_dim, "forward", *options)
        for mask, options in MASKS.items()
        for length in (32_768, 131_072)
        for head_dim in (64, 128)
    ),
    Case("backward, causal, S=32768, D=64", 32_768, 64, "backward", (-1, 0)),
    Case("backward, causal, S=32768, D=128", 32_768, 128, "backward", (-1, 0)),
    Case("decode, 131072 keys", 131_072, 128, "decode"),
    Case("decode, 131072 keys, pages", 131_072, 128, "decode", cache_format="dense"),
    Case("decode, 131072 keys, int8 pages", 131_072, 128, "decode", cache_format="int8"),
    Case("decode, 131072 keys, int4 pages", 131_072, 128, "decode", cache_format="int4"),
    Case("keys past 2^31 elements", 4096, 64, "strided", (-1, 0)),
    Case("4096 uneven sequences", 1024, 64, "uneven", (-1, 0)),
)


def exact_rows(
    q: Tensor, k: Tensor, v: Tensor, rows: Tensor, window: tuple[int, int], sinks: Tensor | None
) -> Tensor:
    """Attention of some rows of one sequence in float64, (rows, Hq, Dv); q is (S, Hq, D)."""
    heads = q.shape[1]
    keys = k.shape[0]
    positions = rows[:, None] + keys - q.shape[0]
    columns = torch.arange(keys, device=q.device)
    hidden = torch.zeros(len(rows), keys, dtype=torch.bool, device=q.device)
    if window[0] >= 0:
        hidden |= columns < positions - window[0]
    if window[1] >= 0:
        hidden |= columns > positions + window[1]
    found: list[Tensor] = []
    for head in range(heads):
        of_k = head * k.shape[1] // heads
        scores = q[rows, head].double() @ k[:, of_k].double().T * q.shape[-1] ** -0.5
        scores = scores.masked_fill(hidden, float("-inf"))
        if sinks is not None:
            sink = sinks[head].double().expand(len(rows), 1)
            p = torch.cat([scores, sink], 1).softmax(-1)[:, :-1]
        else:
            p = scores.softmax(-1)
        found.append(p @ v[:, of_k].double())
    return torch.stack(found, 1)


def _error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).abs().max())


def dense(case: Case, device: str, length: int) -> dict[str, float]:
    """Forward, or forward and backward, of B = 1, Hq = Hk = 8, float16."""
    shape = 1, length, 8, case.head_dim
    q, k, v = (torch.randn(shape, device=device, dtype=torch.float16) for _ in range(3))
    if case.kind == "strided":  # rows a mebielement apart
        stride = 2**20 if device == "cuda" else 1024
        buffer = torch.zeros(length * stride, device=device, dtype=torch.float16)
        k = buffer.as_strided(shape, (0, stride, case.head_dim, 1)).copy_(k)
    sinks = torch.randn(8, device=device) if case.sinks else None
    backward = case.kind == "backward"
    leaves = [x.requires_grad_(backward) for x in (q, k, v)]
    grad_out = torch.randn_like(q) if backward else q
    options: dict[str, Any] = dict(window_size=case.window, s_aux=sinks)
    before = _reset_memory(device)
    start = time.perf_counter()
    out = flashmetal.flash_attn_func(q, k, v, **options, impl="metal", kernel="simdgroup")
    gradients: tuple[Tensor, ...] = ()
    if backward:
        gradients = torch.autograd.grad(out, leaves, grad_out)
    seconds, memory = _finish(device, start, before)
    if device != "cuda":
        return {}
    out = out.detach()
    rows = torch.randint(length, (SAMPLED_ROWS,), device=device)
    with torch.no_grad():
        exact = exact_rows(q[0], k[0], v[0], rows, case.window, sinks)
    row: dict[str, float] = {"seconds": seconds, "bytes": memory - out.nbytes}
    row["error"] = _error(out[0, rows], exact)
    if case.window[0] < 0 and sinks is None and case.kind != "strided":
        a, b, c = (x.transpose(1, 2) for x in leaves)
        theirs = scaled_dot_product_attention(a, b, c, is_causal=case.window == (-1, 0))
        row["torch_error"] = _error(theirs.detach().transpose(1, 2)[0, rows], exact)
        if backward:
            expected = torch.autograd.grad(theirs.transpose(1, 2), leaves, grad_out)
            for name, mine, other in zip("qkv", gradients, expected, strict=True):
                row[f"grad_{name}_difference"] = _error(mine, other.double())
                row[f"grad_{name}_largest"] = float(other.abs().max())
    return row


def decode(case: Case, device: str, length: int) -> dict[str, float]:
    """One query of each of 2 sequences, Hq = 32 over Hk = 8."""
    batch = 2
    q = torch.randn(batch, 1, 32, case.head_dim, device=device, dtype=torch.float16)
    k, v = torch.randn(2, batch, length, 8, case.head_dim, device=device).half()
    used = torch.tensor([length, length - 37], dtype=torch.int32, device=device)
    options: dict[str, Any] = dict(cache_seqlens=used, num_splits=SPLITS)
    stored_k, stored_v = k, v
    if case.cache_format:
        pages = batch * length // PAGE
        table = torch.randperm(pages, device=device).to(torch.int32).view(batch, -1)
        options["block_table"] = table
        stored: list[Tensor] = []
        seen: list[Tensor] = []
        for name, x in (("k", k), ("v", v)):
            codes: Tensor = x
            scale: Tensor | None = None
            if case.cache_format != "dense":
                codes, scale = quantise(x, case.cache_format)
                x = dequantise(codes, scale, torch.float16)
            if scale is not None:
                options[f"{name}_scale"] = _paged(scale, table)
            stored.append(_paged(codes, table))
            seen.append(x)
        (stored_k, stored_v), (k, v) = stored, seen
    before = _reset_memory(device)
    start = time.perf_counter()
    with torch.no_grad():
        out = flashmetal.flash_attn_with_kvcache(
            q, stored_k, stored_v, **options, impl="metal", kernel="decode"
        )
    seconds, memory = _finish(device, start, before)
    if device != "cuda":
        return {}
    rows = torch.zeros(1, dtype=torch.long, device=device)
    errors = [
        _error(
            out[b],
            exact_rows(q[b], k[b, : int(used[b])], v[b, : int(used[b])], rows, (-1, -1), None),
        )
        for b in range(batch)
    ]
    return {"seconds": seconds, "bytes": memory - out.nbytes, "error": max(errors)}


def _paged(x: Tensor, table: Tensor) -> Tensor:
    """(B, S, ...) as pages (all, PAGE, ...) in the order of a table."""
    pages = torch.empty((table.numel(), PAGE, *x.shape[2:]), dtype=x.dtype, device=x.device)
    cut = x.reshape(table.numel(), PAGE, *x.shape[2:])
    if x.dtype == torch.float8_e4m3fn:
        pages.view(torch.uint8)[table.flatten().long()] = cut.view(torch.uint8)
    else:
        pages[table.flatten().long()] = cut
    return pages


def uneven(case: Case, device: str, length: int) -> dict[str, float]:
    """Packed sequences of 0 to 1023 rows, Hq = 8 over Hk = 2."""
    generator = torch.Generator().manual_seed(0)
    count = 4096 if device == "cuda" else 8
    lengths = torch.randint(0, length, (count,), generator=generator)
    starts = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    total, longest = int(starts[-1]), int(lengths.max())
    q = torch.randn(total, 8, case.head_dim, device=device, dtype=torch.float16)
    k, v = torch.randn(2, total, 2, case.head_dim, device=device).half()
    offsets = starts.to(device, torch.int32)
    before = _reset_memory(device)
    start = time.perf_counter()
    packed = offsets, offsets, longest, longest
    out = flashmetal.flash_attn_varlen_func(
        q, k, v, *packed, causal=True, impl="metal", kernel="simdgroup"
    )
    seconds, memory = _finish(device, start, before)
    if device != "cuda":
        return {}
    errors: list[float] = []
    for b in range(0, count, 64):
        first, end = int(starts[b]), int(starts[b + 1])
        if end > first:
            rows = torch.arange(end - first, device=device)
            part = [x[first:end] for x in (q, k, v)]
            exact = exact_rows(part[0], part[1], part[2], rows, (-1, 0), None)
            errors.append(_error(out[first:end], exact))
    return {"seconds": seconds, "bytes": memory - out.nbytes, "error": max(errors)}


RUNS: dict[str, Callable[[Case, str, int], dict[str, float]]] = {
    **dict.fromkeys(("forward", "backward", "strided"), dense),
    "decode": decode,
    "uneven": uneven,
}


def _reset_memory(device: str) -> int:
    if device != "cuda":
        return 0
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    return torch.cuda.memory_allocated()


def _finish(device: str, start: float, before: int) -> tuple[float, int]:
    if device != "cuda":
        return 0.0, 0
    torch.cuda.synchronize()
    return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before


class Idle:
    """A compiled library whose kernels do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **launch: None


def compile_all() -> None:
    """Compile what the cases launch, without a GPU."""

    def compile_shader(source: str) -> Idle:
        metalsim.compile_shader(source, engine="cuda")
        return Idle()

    with metal_runtime(Runtime(compile_shader, "cpu", Gpu.named("M1"))):
        for case in track(CASES, "compiling"):
            RUNS[case.kind](case, "cpu", 512)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compile", action="store_true", help="fill metalsim's cache, run nothing")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.compile:
        return compile_all()
    torch.manual_seed(0)
    rows: list[dict[str, Any]] = []
    table = Table("case", "error", "torch's", "MB beside", "s")

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(source, engine="cuda")

    with metal_runtime(Runtime(compile_shader, "cuda", Gpu.named("M1"))):
        for case in track(CASES, "running"):
            found = RUNS[case.kind](case, "cuda", case.length)
            rows.append({"case": case.name, **found})
            theirs = f"{found['torch_error']:.2e}" if "torch_error" in found else ""
            size, seconds = f"{found['bytes'] / 1e6:.1f}", f"{found['seconds']:.2f}"
            table.add_row(case.name, f"{found['error']:.2e}", theirs, size, seconds)
            torch.cuda.empty_cache()
            device = torch.cuda.get_device_name()
            report = {"machine": machine(), "device": device, "cases": rows}
            options.results.write_text(json.dumps(report, indent=1) + "\n")
    Console().print(table)
    return None


if __name__ == "__main__":
    main()
