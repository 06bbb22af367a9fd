"""Which engine serves a problem, and why: every refusal carries its reason."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from .cache.append import CacheAppend
from .engines import metal, portable, stock
from .engines.metal.runtime import Runtime, runtime_for
from .problem import AttentionProblem
from .settings import choice

ENGINES = ("metal", "stock", "portable", "reference")
_REFUSE = {"metal": metal.refuse, "stock": stock.refuse, "portable": portable.refuse}
_REFUSE_BACKWARD = {
    "metal": metal.refuse_backward,
    "stock": stock.refuse_backward,
    "portable": portable.refuse_backward,
}


class Plan(NamedTuple):
    """The decision for one problem. ``refusals`` lists (engine, reason) of those passed over.

    ``backward`` is the engine of the gradients, None where none are needed; "reference" records
    the eager forward under autograd. ``is_explicit`` says that the engine was asked for, by the
    call or the environment: nothing else may serve.
    """

    engine: str
    kernel: str | None
    why: str
    refusals: tuple[tuple[str, str], ...]
    backward: str | None = None
    is_explicit: bool = False


def plan(problem: AttentionProblem, impl: str = "auto", kernel: str | None = None) -> Plan:
    """Choose the engine: the fastest that is right, or the one asked for.

    ``impl`` is "auto" or an engine's name, ``kernel`` picks among the Metal kernels. An explicit
    choice never falls back: NotImplementedError carries the engine's reason. Where a call says
    "auto", the environment may choose (:mod:`.settings`).
    """
    return _plan(problem, *choice(impl, kernel), runtime_for(problem.device))


def set_aside(problem: AttentionProblem | CacheAppend, kernel: str, reason: str) -> None:
    """Plan this problem without one of the Metal kernels from now on."""
    runtime = runtime_for(problem.device)
    if runtime is not None:
        runtime.set_aside[problem, kernel] = reason
    _plan.cache_clear()


@lru_cache(maxsize=4096)
def _plan(
    problem: AttentionProblem, impl: str, kernel: str | None, runtime: Runtime | None
) -> Plan:
    if impl != "auto":
        return _explicit(problem, impl, kernel)
    refusals: list[tuple[str, str]] = []
    for engine in ENGINES[:-1]:
        reason, why = _judge(problem, engine)
        if reason is None:
            backward = _backward_engine(problem, engine) if problem.needs_grad else None
            if backward == "reference":
                reason = portable.refuse_backward(problem)
                assert reason is not None
                return Plan(backward, None, reason, tuple(refusals), backward)
            kernel = None
            if engine == "metal":
                (kernel, *_), passed_over = metal.kernels_for(problem)
                refusals += [(f"metal's {name}", reason) for name, reason in passed_over]
            return Plan(engine, kernel, why, tuple(refusals), backward)
        refusals.append((engine, reason))
    return Plan("reference", None, "no faster engine takes this problem", tuple(refusals))


def _explicit(problem: AttentionProblem, impl: str, kernel: str | None) -> Plan:
    reason = None if impl == "reference" else _REFUSE[impl](problem)
    if reason is None and problem.needs_grad and impl != "reference":
        reason = _REFUSE_BACKWARD[impl](problem)
    if reason is None and impl == "metal" and kernel is not None:
        reason = metal.refuse_kernel(problem, kernel)
    if reason is not None:
        raise NotImplementedError(f"flashmetal: impl={impl!r} cannot serve this call: {reason}")
    if impl == "metal":
        kernel = kernel or next(iter(metal.kernels_for(problem)[0]), "scalar")
    backward = impl if problem.needs_grad else None
    return Plan(impl, kernel, "asked for by impl", (), backward, is_explicit=True)


def _backward_engine(problem: AttentionProblem, engine: str) -> str:
    """The forward's own engine, or the first that has a backward for this call."""
    for name in (engine, "portable"):
        if _REFUSE_BACKWARD[name](problem) is None:
            return name
    return "reference"


def _judge(problem: AttentionProblem, engine: str) -> tuple[str | None, str]:
    """(reason against, reason for) one engine under impl="auto"."""
    reason = _REFUSE[engine](problem)
    if reason is not None:
        return reason, ""
    if engine == "metal":
        if problem.device != "mps":
            return f"a simulator serves {problem.device} tensors: right, but slow", ""
        serving, set_aside = metal.kernels_for(problem)
        if not serving:
            return f"its kernels are set aside: {set_aside[0][1]}", ""
        return None, "our kernels serve every feature on Apple GPUs"
    if engine == "stock":
        preferred, why = stock.prefer_stock(problem)
        return (None, why) if preferred else (why, "")
    return None, "tile by tile in torch operations, memory linear in the sequence"
