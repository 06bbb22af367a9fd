"""What each way of computing a workload takes, or why it was not timed."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...ops import attend
from ...plan import plan
from ...problem import AttentionProblem
from ...request import AttentionInputs, Request
from .checking import Oracle, Verdict, judge_gradients
from .contestants import Call, Padded, additive_mask, as_padded, eager_call, flex_call, sdpa_call
from .workloads import Workload

_COPIES = {"eager": 3, "sdpa": 1, "flex": 0}  # of scores, or of a mask, that are held at once
_CHECKED_ROWS = 256  # of each sequence, where gradients are checked


class Options(NamedTuple):
    """What is asked for of every workload; ``training`` is forward and backward."""

    device: str
    rivals: tuple[str, ...]
    most_gb: float = 4.0  # of scores or masks
    repeats: int = 15
    training: bool = False


class Row(NamedTuple):
    """The result of one contestant: ``median_ms`` is None where ``note`` says why it was not timed.

    ``error`` is against float64, of rows of the output or of gradients. For flashmetal ``note`` is
    the engine that served.
    """

    workload: str
    contestant: str
    median_ms: float | None
    error: float | None
    note: str


class Contest(NamedTuple):
    """A workload's call, and how each contestant makes it, or why it does not.

    With gradients a contestant gives o, lse or None, and the gradients of q, k and v, in the layout
    of the inputs, from the gradient ``grad_o`` at o.
    """

    problem: AttentionProblem
    inputs: AttentionInputs
    grad_o: Tensor | None
    calls: dict[str, Callable[[], tuple[Any, ...]] | str]

    def judge(self, results: tuple[Any, ...]) -> Verdict:
        """Whether what a contestant gave is right."""
        if self.grad_o is None:
            return Oracle(self.problem, self.inputs).judge(*results)
        return judge_gradients(self.problem, self.inputs, self.grad_o, results[2:])


def contest(workload: Workload, options: Options) -> Contest:
    """Masks are made and sequences padded here, outside of what is timed."""
    problem, inputs = workload.build(options.device)
    padded = as_padded(problem, inputs)
    if not options.training:
        calls = _calls(problem, inputs, padded, options)
        return Contest(problem, inputs, None, dict(calls))
    problem = problem._replace(needs_grad=True)
    ours = [x.requires_grad_() for x in inputs[:3]]
    theirs = [x.detach().requires_grad_() for x in padded[:3]]
    padded = Padded(theirs[0], theirs[1], theirs[2], padded.lengths)
    grad_o = torch.randn_like(inputs.q[..., :1]).expand(*inputs.q.shape[:-1], problem.head_dim_v)
    grad_o = grad_o.contiguous()
    calls = {
        name: call
        if isinstance(call, str)
        else partial(_trained, call, ours if name == "flashmetal" else theirs, grad_o, padded)
        for name, call in _calls(problem, inputs, padded, options).items()
    }
    return Contest(problem, inputs, grad_o, dict(calls))


def _trained(call: Call, leaves: list[Tensor], grad_o: Tensor, padded: Padded) -> tuple[Any, ...]:
    o, lse = call()
    grads = torch.autograd.grad(o, leaves, grad_o)
    if leaves[0] is padded.q:
        grads = tuple(padded.pack(x, keys=index > 0) for index, x in enumerate(grads))
    return o, lse, *grads


def _calls(
    problem: AttentionProblem, inputs: AttentionInputs, padded: Padded, options: Options
) -> dict[str, Call | str]:
    found: dict[str, Call | str] = {"flashmetal": _flashmetal_call(problem, inputs)}
    makers: dict[str, Callable[[], Call]] = {
        "eager": lambda: eager_call(problem, padded, additive_mask(problem, inputs), inputs),
        "sdpa": lambda: sdpa_call(problem, padded, additive_mask(problem, inputs)),
        "flex": lambda: flex_call(problem, padded, inputs),
    }
    for rival in options.rivals:
        reason = _refuse(problem, rival, options.most_gb)
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


def _flashmetal_call(problem: AttentionProblem, inputs: AttentionInputs) -> Call:
    """The call as the public functions make it, by the engine that is planned."""
    packed = problem.layout == "varlen"
    lengths = (problem.seqlen_q, problem.seqlen_k) if packed else (None, None)
    window = problem.window_left, problem.window_right
    request = Request("flashmetal bench", *lengths, problem.scale, False, *window, problem.softcap)
    return partial(attend, inputs, request)


def measure(workload: Workload, options: Options) -> list[Row]:
    """Check, then time each contestant in turns: a busy machine slows all alike.

    Gradients are checked on the same workload cut to few rows, for their oracle needs all of it.
    """
    field = contest(workload, options)
    checked = contest(workload.cut(_CHECKED_ROWS), options) if options.training else field
    chosen = plan(field.problem)
    gradients = f", gradients by {chosen.backward}" if options.training else ""
    notes = {"flashmetal": chosen.engine + gradients}
    errors: dict[str, float] = {}
    running: dict[str, Callable[[], Any]] = {}
    for name, call in field.calls.items():
        small = checked.calls[name]
        if isinstance(call, str) or isinstance(small, str):
            notes[name] = str(call)
            continue
        try:
            verdict = checked.judge(small())
            call()  # compiles, loads libraries, starts threads
        except (RuntimeError, NotImplementedError) as error:
            notes[name] = f"cannot run: {str(error).strip().splitlines()[0][:100]}"
            continue
        errors[name] = verdict.error
        if verdict.right:
            running[name] = call
        else:
            notes[name] = str(verdict)
    times = interleaved(running, options.repeats, options.device)
    return [
        Row(
            workload.name,
            name,
            statistics.median(times[name]) if name in times else None,
            errors.get(name),
            notes.get(name, ""),
        )
        for name in field.calls
    ]


def interleaved(
    calls: Mapping[str, Callable[[], Any]],
    repeats: int,
    device: str = "cpu",
    seconds: float = 3.0,
    least: int = 1,
) -> dict[str, list[float]]:
    """Milliseconds of each call, in turns, ``repeats`` times; fewer where that takes ``seconds``.

    A slow call is repeated less: its share of noise is smaller.
    """
    times: dict[str, list[float]] = {name: [] for name in calls}
    most = dict.fromkeys(calls, repeats)
    for turn in range(repeats):
        for name, call in calls.items():
            if turn < most[name]:
                times[name].append(_milliseconds(call, device))
                taken = sum(times[name]) / len(times[name])
                most[name] = max(least, min(repeats, int(1e3 * seconds / max(taken, 1e-6))))
    return times


def _milliseconds(call: Callable[[], Any], device: str) -> float:
    start = time.perf_counter()
    call()
    if device != "cpu":
        torch.accelerator.synchronize()
    return 1e3 * (time.perf_counter() - start)
