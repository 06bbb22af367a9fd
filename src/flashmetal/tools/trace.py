"""What was called: every attention of the process, by which engine and why, counted and timed.

While a :class:`Trace` is on, it stands in for three functions of :mod:`.ops`; while none is, calls
meet nothing of this module.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..plan import Plan, plan
from ..problem import AttentionProblem
from ..request import AttentionInputs, Request

_ops: Any = ops  # the functions that are stood in for are private to it
_AUTOGRAD = "recorded by autograd, for forward-mode derivatives or function transforms"


class Kind(NamedTuple):
    """Calls that are counted together: the same function, problem and decision.

    ``function`` is the public function, or "gradients" for a backward pass.
    """

    function: str
    problem: AttentionProblem
    engine: str
    kernel: str | None
    why: str


class Total(NamedTuple):
    """What calls of one kind took together.

    ``seconds`` are of the host, the device waited for before and after each call. ``bytes`` are
    those of the tensors given and returned, each counted once a call; a paged cache counts whole.
    """

    calls: int
    seconds: float
    bytes: int


class Trace:
    """A context manager that counts the calls of its block, in every thread, in ``totals``.

    On accelerators each call waits for the device, to be timed: a traced program is slower there.
    Calls inside of ``torch.compile`` are counted when they run; a first call's time holds what it
    compiles. Appending to a cache is not attention and is not counted.
    """

    def __init__(self) -> None:
        self.totals: dict[Kind, Total] = {}
        self._lock = threading.Lock()
        self._replaced: dict[str, Callable[..., Any]] = {}

    def __enter__(self) -> Trace:
        if self._replaced:
            raise RuntimeError("Trace: it is on already; make another to nest them")
        for name, describe in (("_run", _forward), ("_eager", _eager), ("_gradients", _backward)):
            self._replaced[name] = getattr(_ops, name)
            setattr(_ops, name, self._watched(self._replaced[name], describe))
        return self

    def __exit__(self, *error: object) -> None:
        for name, function in self._replaced.items():
            setattr(_ops, name, function)
        self._replaced.clear()

    def _watched(
        self, function: Callable[..., Any], describe: Callable[..., tuple[Kind, Iterable[Any]]]
    ) -> Callable[..., Any]:
        @functools.wraps(function)
        def watched(*arguments: Any) -> Any:
            if torch.compiler.is_compiling():
                return function(*arguments)
            device = (arguments[1][0] if describe is _backward else arguments[0]).device
            _wait(device)
            start = time.perf_counter()
            result = function(*arguments)
            _wait(device)
            seconds = time.perf_counter() - start
            kind, given = describe(*arguments)
            self._add(kind, seconds, _bytes((*given, *result)))
            return result

        return watched

    def _add(self, kind: Kind, seconds: float, size: int) -> None:
        with self._lock:
            total = self.totals.get(kind, Total(0, 0.0, 0))
            self.totals[kind] = Total(total.calls + 1, total.seconds + seconds, total.bytes + size)


def _forward(
    problem: AttentionProblem, inputs: AttentionInputs, request: Request, out: Tensor | None
) -> tuple[Kind, Iterable[Any]]:
    # Asked after the call: a Metal kernel that was set aside during it did not serve it.
    return _kind(request.function, problem, plan(problem, request.impl, request.kernel)), inputs


def _eager(
    problem: AttentionProblem, inputs: AttentionInputs, request: Request
) -> tuple[Kind, Iterable[Any]]:
    chosen = plan(problem, request.impl, request.kernel)
    why = chosen.why if chosen.engine == "reference" else _AUTOGRAD
    return Kind(request.function, problem, "reference", None, why), inputs


def _backward(chosen: Plan, call: tuple[Any, ...]) -> tuple[Kind, Iterable[Any]]:
    problem, inputs, rows, _ = call
    assert chosen.backward is not None
    of_forward = chosen._replace(engine=chosen.backward)
    return _kind("gradients", problem, of_forward), (*inputs, *rows)


def _kind(function: str, problem: AttentionProblem, chosen: Plan) -> Kind:
    return Kind(function, problem, chosen.engine, chosen.kernel, chosen.why)


def _wait(device: str) -> None:
    if device != "cpu" and torch.accelerator.is_available():
        torch.accelerator.synchronize()


def _bytes(tensors: Iterable[Any]) -> int:
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))


def features(problem: AttentionProblem) -> list[str]:
    """What the problem has beyond dense q, k and v, in words."""
    left, right = problem.window_left, problem.window_right
    named = {
        "varlen": problem.layout == "varlen",
        "causal": right == 0 and left < 0,
        f"window ({left}, {right})": left >= 0 or right > 0,
        f"softcap {problem.softcap:g}": problem.softcap,
        "bias": problem.bias is not None,
        "ALiBi": problem.alibi is not None,
        "sinks": problem.sinks,
        "seqused_k": problem.seqused_k,
        f"pages of {problem.page_size}": problem.page_size,
        "leftpad_k": problem.leftpad_k,
        f"k {problem.k_format}": problem.k_format != "dense",
        f"v {problem.v_format}": problem.v_format != "dense",
        f"dropout {problem.dropout_p:g}": problem.dropout_p,
        "gradients": problem.needs_grad,
    }
    return [name for name, given in named.items() if given]
