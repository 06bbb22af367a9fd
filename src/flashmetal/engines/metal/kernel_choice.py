"""Which of the Metal kernels serves a call, and why the others do not."""

from __future__ import annotations

import torch

from ...problem import AttentionProblem
from .cooperative import layout_of
from .runtime import runtime_for
from .tiles import DECODE_QUERIES

TENSOR_FAMILY = 10  # of Apple GPUs, from which tensor operations are the faster unit


def kernels_for(problem: AttentionProblem) -> tuple[tuple[str, ...], tuple[tuple[str, str], ...]]:
    """The kernels that would serve a call, best first, and (kernel, reason) of those before them.

    "decode" is best where few queries meet many keys, else the tile on "tensor" operations where a
    GPU gains by them, else the one on "simdgroup" matrices; "scalar" is the last resort.
    """
    runtime = runtime_for(problem.device)
    few = problem.seqlen_q <= DECODE_QUERIES and problem.seqlen_q < problem.seqlen_k
    wanted = ["decode"] if few else []
    if runtime is not None and runtime.gpu.family >= TENSOR_FAMILY:
        wanted.append("tensor")
    serving: list[str] = []
    refusals: list[tuple[str, str]] = []
    for kernel in (*wanted, "simdgroup", "scalar"):
        reason = refuse_kernel(problem, kernel)
        if reason is None and kernel == "tensor":
            reason = _against_tensor(problem)
        if reason is None:
            serving.append(kernel)
        elif not serving:
            refusals.append((kernel, reason))
    return tuple(serving), tuple(refusals)


def refuse_kernel(problem: AttentionProblem, kernel: str) -> str | None:
    """Why one of the kernels cannot serve a call that the engine can; None if it can."""
    runtime = runtime_for(problem.device)
    if kernel == "decode" and problem.dropout_p > 0.0:
        return "the decode kernel has no dropout; use kernel='simdgroup'"
    if kernel == "tensor" and (runtime is None or not runtime.has_tensor_operations):
        return "tensor operations need torch 2.11 and macOS 26.2, or a simulator that has them"
    return None if runtime is None else runtime.set_aside.get((problem, kernel))


def needs_exact_products(problem: AttentionProblem) -> bool:
    """Whether float32 is multiplied as it is.

    Published timings of an A19 say that its tensor units take no part then; not measured here.
    """
    return problem.dtype == torch.float32 and not problem.tf32


def _against_tensor(problem: AttentionProblem) -> str | None:
    """Why tensor operations do not pay for a call; asking the GPU is their first use."""
    runtime = runtime_for(problem.device)
    assert runtime is not None
    if needs_exact_products(problem):
        return (
            "exact float32 products stay on simdgroup matrices; "
            "torch.set_float32_matmul_precision('high') allows TF32"
        )
    try:
        layout = layout_of(runtime, problem.dtype, problem.tf32)
    except Exception as error:  # whatever a compiler or a driver comes up with
        return f"asking for the layout of cooperative tensors failed: {error}"
    if layout == "unknown":
        return "this GPU's layout of cooperative tensors is not known: right, but slow"
    return None
