"""The Metal engine on CPU tensors: the real kernels in the simulator, under all its checkers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs

TILE_GPUS = ("M1", "M3")  # one chip of each tile table


def gpu_of(name: str) -> Gpu:
    """A chip of one core, which no problem leaves idle: tiles are as tiles.txt has them."""
    return Gpu.named(name, cores=1)


@cache
def runtime(gpu: str = "M1", layout: str | None = None) -> Runtime:
    """One simulated runtime a chip, so that variants are loaded once a process.

    ``layout`` is that of cooperative tensors, as metalsim names it.
    """
    return Runtime(partial(checked, layout=layout), "cpu", gpu_of(gpu))


def checked(source: str, layout: str | None = None) -> metalsim.ShaderLibrary:
    """Kernels whose launches raise what the checkers find."""
    return metalsim.compile_shader(source, check=True, cooperative_layout=layout)


def simulated_forward(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    *,
    gpu: str = "M1",
    kernel: str = "simdgroup",
    compile_shader: Callable[[str], Any] | None = None,
) -> tuple[Tensor, Tensor]:
    """(o, lse) of one call through the real kernel; o starts as NaN."""
    o = inputs.q.new_full((*inputs.q.shape[:-1], problem.head_dim_v), math.nan)
    chosen = runtime(gpu)
    if compile_shader is not None:
        chosen = Runtime(compile_shader, "cpu", gpu_of(gpu))
    with metal_runtime(chosen):
        return metal.forward(problem, inputs, o, kernel=kernel)


@contextmanager
def counted(gpu: str = "M1") -> Generator[Counter[str]]:
    """A simulated runtime for the block, and the counters of all its launches after it."""
    launched: list[metalsim.Kernel] = []
    total: Counter[str] = Counter()

    class Counted:
        def __init__(self, library: metalsim.ShaderLibrary) -> None:
            self._library = library

        def __getattr__(self, name: str) -> metalsim.Kernel:
            launched.append(getattr(self._library, name))
            return launched[-1]

    def compile_shader(source: str) -> Counted:
        return Counted(metalsim.compile_shader(source, check=()))

    with metal_runtime(Runtime(compile_shader, "cpu", gpu_of(gpu))):
        yield total
    for kernel in launched:
        total.update(kernel.counters)


def counted_forward(
    problem: AttentionProblem,
    inputs: AttentionInputs,
    *,
    gpu: str = "M1",
    kernel: str = "simdgroup",
) -> Counter[str]:
    """The simulator's counters of one call, all its launches together."""
    with counted(gpu) as counters:
        metal.forward(problem, inputs, kernel=kernel)
    return counters


def bits(*tensors: Tensor) -> list[Tensor]:
    """Tensors as integers of their width, for comparisons of every bit (NaN included)."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}
    return [tensor.view(integers[tensor.element_size()]) for tensor in tensors]
