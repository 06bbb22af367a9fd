"""Counts what each Metal kernel does, in the simulator: a row of CASES a call, for each tile table.

Writes benchmarks/results/kernel_counters.json and prints the same as a table. Counts are exact and
say nothing about time; accesses are those the host compiler left after optimising.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from report import machine
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

import flashmetal
import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.engines.metal.cooperative import layout_of
from flashmetal.gradients import QueryRows
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs
from flashmetal.testing import differentiable, make_inputs, make_output_gradients
from metalsim.profile import LineCounters

RESULTS = Path(__file__).parent / "results" / "kernel_counters.json"
GPUS = ("M1", "M3")
TENSOR_GPUS = ("M5",)


class Case(NamedTuple):
    """One call: the arguments of flashmetal.testing.make_inputs, and whether its backward runs."""

    name: str
    inputs: dict[str, Any]
    backward: bool = False
    kernel: str = "simdgroup"


_DENSE = {"seqlen_q": 256, "heads_q": 2, "head_dim": 64, "dtype": torch.float16}
_DECODE = {
    "seqlen_q": 1,
    "seqlen_k": 4096,
    "heads_q": 8,
    "heads_k": 2,
    "head_dim": 128,
    "dtype": torch.float16,
}

CASES = (
    Case("full", _DENSE),
    Case("causal", {**_DENSE, "window_right": 0}),
    Case("D=128", {**_DENSE, "head_dim": 128}),
    Case("D=256", {**_DENSE, "head_dim": 256}),
    Case("fp32", {**_DENSE, "dtype": torch.float32}),
    Case("dropout", {**_DENSE, "dropout_p": 0.1}),
    Case("window 128", {**_DENSE, "seqlen_q": 2048, "window_left": 128, "window_right": 0}),
    Case("scalar", {**_DENSE, "seqlen_q": 64}, kernel="scalar"),
    Case("backward", _DENSE, backward=True),
    Case("backward D=128", {**_DENSE, "head_dim": 128, "window_right": 0}, backward=True),
    Case("backward bias", {**_DENSE, "seqlen_q": 64, "bias": True}, backward=True),
    Case("tensor", _DENSE, kernel="tensor"),
    Case("tensor causal", {**_DENSE, "window_right": 0}, kernel="tensor"),
    Case("tensor D=128", {**_DENSE, "head_dim": 128}, kernel="tensor"),
    Case("tensor D=256", {**_DENSE, "head_dim": 256}, kernel="tensor"),
    Case("tensor fp32", {**_DENSE, "dtype": torch.float32}, kernel="tensor"),
    Case("tensor backward", _DENSE, backward=True, kernel="tensor"),
    Case(
        "tensor backward D=128",
        {**_DENSE, "head_dim": 128, "window_right": 0},
        backward=True,
        kernel="tensor",
    ),
    Case("teams D=512", {**_DENSE, "seqlen_q": 64, "head_dim": 512}),
    Case("tensor teams D=512", {**_DENSE, "seqlen_q": 64, "head_dim": 512}, kernel="tensor"),
    Case("decode", _DECODE, kernel="decode"),
    Case("decode pages", {**_DECODE, "page_size": 64}, kernel="decode"),
    Case("decode int8", {**_DECODE, "k_format": "int8", "v_format": "int8"}, kernel="decode"),
)


class Recorder:
    """A compile_shader whose kernels leave their counters in `launches`."""

    def __init__(self) -> None:
        self.launches: list[dict[str, Any]] = []
        self.lines: tuple[LineCounters, ...] = ()  # of the latest

    def compile_shader(self, source: str) -> Any:
        """A library as torch.mps.compile_shader's."""
        return _Library(metalsim.compile_shader(source, check=False, profile=True), self)


class _Library:
    def __init__(self, library: metalsim.ShaderLibrary, recorder: Recorder) -> None:
        self._library = library
        self._recorder = recorder

    def __getattr__(self, name: str) -> Callable[..., None]:
        kernel = getattr(self._library, name)

        def launch(*arguments: object, threads: Sequence[int], group_size: Sequence[int]) -> None:
            kernel(*arguments, threads=threads, group_size=group_size)
            self._recorder.lines = kernel.line_counters
            self._recorder.launches.append(
                {
                    "kernel": name,
                    "threads": list(threads),
                    "group": list(group_size),
                    "threadgroup_bytes": kernel.static_thread_group_memory_length,
                    "counters": kernel.counters,
                }
            )

        return launch


def count(case: Case, gpu: str) -> dict[str, Any]:
    """The launches of one call, each with its counters; of a backward, without its forward."""
    problem, inputs = make_inputs(**case.inputs)
    recorder = Recorder()
    runtime = Runtime(recorder.compile_shader, "cpu", Gpu.named(gpu))
    with metal_runtime(runtime):
        if case.kernel == "tensor":
            layout_of(runtime, problem.dtype)
        recorder.launches.clear()  # the probe of that layout
        _call(case, problem, inputs, recorder)
    plain = {
        name: str(value).removeprefix("torch.") if name == "dtype" else value
        for name, value in case.inputs.items()
    }
    return {"case": case.name, "gpu": gpu, "inputs": plain, "launches": recorder.launches}


def _call(
    case: Case, problem: AttentionProblem, inputs: AttentionInputs, recorder: Recorder
) -> None:
    o, lse = metal.forward(problem, inputs, kernel=case.kernel)
    if case.backward:
        recorder.launches.clear()
        gradients = make_output_gradients(o, lse, through_lse=False)
        rows = QueryRows(o, lse, *gradients)
        metal.backward(problem, inputs, rows, differentiable(inputs), case.kernel)


def count_append(gpu: str) -> dict[str, Any]:
    """New keys, rotated, into an int8 cache of pages, and the decode behind it."""
    torch.manual_seed(0)
    case = {"batch": 4, "heads_q": 8, "heads_k": 2, "head_dim": 128, "page_size": 64, "keys": 500}
    heads = {"q": 8, "k": 2, "v": 2}
    new = {name: torch.randn(4, 1, h, 128, dtype=torch.float16) for name, h in heads.items()}
    caches = [torch.zeros(32, 64, 2, 128, dtype=torch.int8) for _ in range(2)]
    scales = [torch.zeros(32, 64, 2) for _ in range(2)]
    angles = torch.randn(512, 64)
    recorder = Recorder()
    with metal_runtime(Runtime(recorder.compile_shader, "cpu", Gpu.named(gpu))):
        flashmetal.flash_attn_with_kvcache(
            new["q"],
            *caches,
            new["k"],
            new["v"],
            rotary_cos=angles.cos().half(),
            rotary_sin=angles.sin().half(),
            cache_seqlens=torch.full((4,), 500, dtype=torch.int32),
            block_table=torch.arange(32, dtype=torch.int32).view(4, 8),
            k_scale=scales[0],
            v_scale=scales[1],
            impl="metal",
        )
    return {"case": "append", "gpu": gpu, "inputs": case, "launches": recorder.launches}


def show(rows: list[dict[str, Any]]) -> None:
    """The table: a line a launch."""
    table = Table(
        title="Metal kernels as the simulator counts them", box=box.SIMPLE, pad_edge=False
    )
    table.padding = (0, 1, 0, 0)
    for column in ("case", "kernel"):
        table.add_column(column, no_wrap=True)
    for column in ("M mult.", "device", "lines", "group", "conflicts", "barriers"):
        table.add_column(column, justify="right", no_wrap=True)
    table.caption = (
        "M mult.: million multiply-adds of matrices and tensor operations; "
        "device, group: MB of memory read and written; lines: bytes of the 128-byte lines touched, "
        "a byte used; conflicts: extra passes over the banks, an access of a simdgroup"
    )
    for row in rows:
        for launch in row["launches"]:
            table.add_row(
                f"{row['case']} {row['gpu']}",
                launch["kernel"].rpartition("_")[2],
                *_cells(launch["counters"]),
            )
    Console().print(table)


def _cells(counters: dict[str, int]) -> tuple[str, ...]:
    device = counters["device_bytes_loaded"] + counters["device_bytes_stored"]
    lines = counters["device_lines_loaded"] + counters["device_lines_stored"]
    threadgroup = counters["threadgroup_bytes_loaded"] + counters["threadgroup_bytes_stored"]
    multiply_adds = counters["matrix_multiplies"] * 512 + counters["tensor_multiply_adds"]
    accesses = counters["threadgroup_loads"] + counters["threadgroup_stores"]
    return (
        f"{multiply_adds / 1e6:.2f}",
        f"{device / 1e6:.2f}",
        f"{lines * 128 / max(device, 1):.2f}",
        f"{threadgroup / 1e6:.2f}",
        f"{counters['bank_conflicts'] / max(accesses, 1):.2f}",
        f"{counters['threadgroup_barriers']:,}",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=RESULTS)
    output = parser.parse_args().output
    work = [
        (case, gpu) for case in CASES for gpu in (TENSOR_GPUS if case.kernel == "tensor" else GPUS)
    ]
    rows = [count(case, gpu) for case, gpu in track(work, description="simulating")]
    rows.append(count_append(GPUS[0]))
    output.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
