"""``flashmetal verify``: the Metal kernels of this machine against the float64 reference."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..cache.testing_append import assert_append_matches_reference, copied, make_append
from ..checks import KERNELS
from ..engines import metal
from ..engines.metal.runtime import Runtime, runtime_for
from ..gradients import QueryRows
from ..testing import (
    assert_gradients_match_reference,
    assert_matches_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

VERIFIED = (*KERNELS, "append")
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHAPE = {"seqlen_q": 70, "seqlen_k": 100, "heads_q": 4, "heads_k": 2, "head_dim": 64}
_PAGED = {"batch": 2, "page_size": 16, "seqused_k": (100, 37)}
_TRAINED: dict[str, dict[str, Any]] = {
    "causal": {"window_right": 0},
    "full": {},
    "window": {"window_left": 20, "window_right": 3, "sinks": True},
    "softcap": {"softcap": 2.0},
    "bias": {"batch": 2, "bias": True},
    "ALiBi": {"alibi": True, "window_right": 0},
    "varlen": {"lengths_q": (5, 0, 70), "lengths_k": (40, 7, 100), "window_right": 0},
    "dropout": {"dropout_p": 0.2},
    "D=20/33": {"head_dim": 20, "head_dim_v": 33},
    "D=128": {"head_dim": 128},
    "D=192/128": {"head_dim": 192, "head_dim_v": 128},
    "D=256": {"head_dim": 256},
    "TF32": {},
}
_CACHED: dict[str, dict[str, Any]] = {
    "pages": _PAGED,
    "left padding": {"batch": 2, "leftpad_k": (0, 9), "seqused_k": (100, 60)},
    "int8": {**_PAGED, "k_format": "int8", "v_format": "int8"},
    "fp8": {**_PAGED, "k_format": "fp8", "v_format": "fp8"},
    "int4": {**_PAGED, "k_format": "int8", "v_format": "int4"},
    "D=576/512": {"head_dim": 576, "head_dim_v": 512},
}


_APPENDED: dict[str, dict[str, Any]] = {
    "dense": {"rotary_dim": 64},
    "pages": {"page_size": 8, "rotary_dim": 24, "interleaved": False},
    "packed": {"packed_q": True, "packed_new": True, "rotary_dim": 32, "rotary_seqlens": True},
    "int8": {"page_size": 8, "k_format": "int8", "v_format": "int8"},
    "fp8": {"page_size": 8, "k_format": "fp8", "v_format": "fp8"},
    "int4": {"rotary_dim": 32, "rotate_rows": False, "k_format": "int8", "v_format": "int4"},
    "D=33/7": {"head_dim": 33, "head_dim_v": 7, "rotary_dim": 6},
}


class Case(NamedTuple):
    """One call of one kernel; ``backward`` runs its gradients too."""

    kernel: str
    dtype: str
    name: str
    fields: dict[str, Any]
    backward: bool


def cases(kernels: tuple[str, ...], dtypes: tuple[str, ...], full: bool) -> Iterator[Case]:
    """A call and its gradients a kernel and dtype; with ``full`` every feature and head dim."""
    trained = _TRAINED if full else {"causal": _TRAINED["causal"]}
    cached = _CACHED if full else {}
    appended = _APPENDED if full else {"dense": _APPENDED["dense"]}
    for kernel in kernels:
        for dtype in dtypes:
            if kernel == "append":
                yield from (Case(kernel, dtype, name, x, False) for name, x in appended.items())
                continue
            for name, fields in (trained | cached).items():
                call = {**_SHAPE, **fields}
                if kernel == "decode":
                    if name == "dropout" or "lengths_q" in fields:
                        continue
                    call["seqlen_q"] = 3
                if name == "TF32" and (kernel, dtype) != ("tensor", "float32"):
                    continue
                gradients = name in trained and kernel in ("tensor", "simdgroup")
                yield Case(kernel, dtype, name, call, gradients)


def run(case: Case, device: str) -> str:
    """ "" if the case is right, else what is wrong."""
    try:
        if case.kernel == "append":
            _run_append(case, device)
            return ""
        problem, inputs = make_inputs(**case.fields, dtype=DTYPES[case.dtype], device=device)
        problem = problem._replace(tf32=case.name == "TF32")
        o, lse = metal.forward(problem, inputs, kernel=case.kernel)
        on_cpu = problem._replace(device="cpu")
        assert_matches_reference(o, lse, on_cpu, inputs)
        if case.backward:
            grads = make_output_gradients(o, lse)
            wanted = differentiable(inputs)
            rows = QueryRows(o, lse, *grads)
            found = metal.backward(problem, inputs, rows, wanted, case.kernel)
            assert_gradients_match_reference(found, on_cpu, inputs, *grads)
    except Exception as error:  # whatever a compiler, a driver or a comparison comes up with
        lines = str(error).strip().splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return ""


def _run_append(case: Case, device: str) -> None:
    problem, given = make_append(**case.fields, dtype=DTYPES[case.dtype])
    found = copied(given)
    found = found._make(None if x is None else x.to(device) for x in found)
    q = metal.append(problem._replace(device=device), found)
    assert_append_matches_reference(found, q, problem, given)


def verify(
    device: str, kernels: tuple[str, ...], dtypes: tuple[str, ...], full: bool, folder: Path | None
) -> int:
    """Run the cases, print a table to attach to a report, and return the exit status.

    ``folder`` gets the results as a JSON file.
    """
    console = Console()
    runtime = runtime_for(device)
    if runtime is None:
        console.print(
            f"No Metal runtime serves {device} tensors on this machine: nothing to verify."
        )
        return 1
    if not runtime.has_tensor_operations:
        kernels = tuple(kernel for kernel in kernels if kernel != "tensor")
    chosen = list(cases(kernels, dtypes, full))
    verdicts = [run(case, device) for case in track(chosen, "verifying", console=console)]
    counts = Counter(
        (case.kernel, case.dtype, not verdict) for case, verdict in _pairs(chosen, verdicts)
    )
    table = Table("kernel", *dtypes, title=f"{runtime.gpu.name}, torch {torch.__version__}")
    for kernel in kernels:
        table.add_row(kernel, *[_cell(counts, kernel, dtype) for dtype in dtypes])
    console.print(table)
    for case, verdict in _pairs(chosen, verdicts):
        if verdict:
            console.print(f"{case.kernel} {case.dtype} {case.name}: {verdict}", markup=False)
    if folder is not None:
        console.print(f"written: {_write(folder, runtime, chosen, verdicts)}")
    return 1 if any(verdicts) else 0


def _pairs(chosen: list[Case], verdicts: list[str]) -> list[tuple[Case, str]]:
    return list(zip(chosen, verdicts, strict=True))


def _cell(counts: Counter[tuple[str, str, bool]], kernel: str, dtype: str) -> str:
    right, wrong = counts[kernel, dtype, True], counts[kernel, dtype, False]
    return f"[red]{wrong} wrong[/], {right} right" if wrong else f"[green]{right} right[/]"


def _write(folder: Path, runtime: Runtime, chosen: list[Case], verdicts: list[str]) -> Path:
    record = {
        "date": date.today().isoformat(),
        "chip": runtime.gpu.name,
        "system": f"{platform.system()} {platform.mac_ver()[0] or platform.release()}",
        "device": runtime.device,
        "torch": torch.__version__,
        "flashmetal": metadata.version("flashmetal"),
        "results": [
            {"kernel": case.kernel, "dtype": case.dtype, "case": case.name, "wrong": verdict}
            for case, verdict in _pairs(chosen, verdicts)
        ],
    }
    words = f"flashmetal {record['date']} {record['chip']} {record['system']}"
    path = folder / f"{re.sub(r'[^a-z0-9.]+', '-', words.lower())}.json"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return path
