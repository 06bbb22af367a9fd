"""What each way of computing a workload takes, or why it was not run."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch

from ..ops import attend
from ..plan import plan
from ..problem import AttentionInputs, AttentionProblem, Request
from .contestants import Call, additive_mask, as_padded, eager_call, flex_call, sdpa_call
from .workloads import Workload

_SECONDS_EACH = 3.0
_COPIES = {"eager": 3, "sdpa": 1, "flex": 0}  # of scores, or of a mask, that are held at once


class Row(NamedTuple):
    """The result of one contestant: ``median_ms`` is None where ``note`` says why it did not run.

    For flashmetal ``note`` is the engine that served.
    """

    workload: str
    contestant: str
    median_ms: float | None
    note: str


def calls_of(
    problem: AttentionProblem, inputs: AttentionInputs, rivals: list[str], most_gb: float
) -> dict[str, Call | str]:
    """A call for each contestant, or the reason why it has none. Masks are made beforehand."""
    found: dict[str, Call | str] = {"flashmetal": flashmetal_call(problem, inputs)}
    padded = as_padded(problem, inputs)
    makers: dict[str, Callable[[], Call]] = {
        "eager": lambda: eager_call(problem, padded, additive_mask(problem, inputs), inputs),
        "sdpa": lambda: sdpa_call(problem, padded, additive_mask(problem, inputs)),
        "flex": lambda: flex_call(problem, padded, inputs),
    }
    for rival in rivals:
        reason = _refuse(problem, rival, most_gb)
        found[rival] = makers[rival]() if reason is None else reason
    return found


def _refuse(problem: AttentionProblem, rival: str, most_gb: float) -> str | None:
    if rival == "sdpa" and problem.softcap:
        return "SDPA has no softcap"
    if rival != "eager" and problem.sinks:
        return "no sinks"
    heads = problem.batch * problem.heads_q if rival == "eager" else 1
    size = 4e-9 * _COPIES[rival] * heads * problem.seqlen_q * problem.seqlen_k
    return f"its scores take {size:.0f} GB: --max-gb" if size > most_gb else None


def flashmetal_call(problem: AttentionProblem, inputs: AttentionInputs) -> Call:
    """The call as the public functions make it, by the engine that is planned."""
    packed = problem.layout == "varlen"
    lengths = (problem.seqlen_q, problem.seqlen_k) if packed else (None, None)
    window = problem.window_left, problem.window_right
    request = Request("flashmetal bench", *lengths, problem.scale, False, *window, problem.softcap)
    return partial(attend, inputs, request)


def measure(
    workload: Workload, device: str, rivals: list[str], most_gb: float, repeats: int
) -> list[Row]:
    """Median milliseconds of each contestant, in turns: a busy machine slows all alike."""
    problem, inputs = workload.build(device)
    notes = {"flashmetal": plan(problem).engine}
    running: dict[str, Call] = {}
    left: dict[str, int] = {}
    for name, call in calls_of(problem, inputs, rivals, most_gb).items():
        if isinstance(call, str):
            notes[name] = call
            continue
        try:
            _milliseconds(call, device)  # compiles, loads libraries, starts threads
            seconds = 1e-3 * _milliseconds(call, device)
        except (RuntimeError, NotImplementedError) as error:
            notes[name] = f"cannot run: {str(error).strip().splitlines()[0][:100]}"
        else:
            running[name] = call
            left[name] = max(1, min(repeats, int(_SECONDS_EACH / max(seconds, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in running}
    for turn in range(repeats):
        for name, call in running.items():
            if turn < left[name]:
                times[name].append(_milliseconds(call, device))
    return [
        Row(workload.name, name, _median(times.get(name)), notes.get(name, ""))
        for name in ("flashmetal", *rivals)
    ]


def _median(times: list[float] | None) -> float | None:
    return statistics.median(times) if times else None


def _milliseconds(call: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return 1e3 * (time.perf_counter() - start)
