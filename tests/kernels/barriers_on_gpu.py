"""The mutants of test_barrier_mutation on an NVIDIA GPU, under compute-sanitizer's racecheck:

    python -m tests.kernels.barriers_on_gpu [--output FILE.json]

The simulator's checkers report every one of these, which that test asserts; this prints what
racecheck says of each. It cannot see a barrier that has lost its memory flags: on these GPUs every
barrier orders all memory.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import metalsim
from metalsim.cuda.sanitizer import Hazard, sanitize

from .launches import LAUNCHES
from .test_barrier_mutation import Mutant, mutants

COMPARED = ("deleted", "of simdgroups")
LAUNCHES_EACH = 2
NONE = Mutant("", 0, "no mutation", "", "")
AT_A_TIME = 8


class _OnGpu:
    """A kernel that takes CPU tensors, by copies of the memory under them."""

    def __init__(self, kernel: metalsim.Kernel) -> None:
        self._kernel = kernel

    def __call__(self, *arguments: Any, **options: Any) -> None:
        flat = {i: _memory(x) for i, x in enumerate(arguments) if isinstance(x, Tensor)}
        copies = {i: memory.cuda() for i, memory in flat.items()}
        self._kernel(*(copies.get(i, x) for i, x in enumerate(arguments)), **options)
        for i, memory in flat.items():
            memory.copy_(copies[i])


def _memory(x: Tensor) -> Tensor:
    last = sum((size - 1) * stride for size, stride in zip(x.shape, x.stride(), strict=True))
    return x.as_strided((last + 1 if x.numel() else 0,), (1,))


class _Library:
    def __init__(self, library: metalsim.ShaderLibrary) -> None:
        self._library = library

    def __getattr__(self, name: str) -> _OnGpu:
        return _OnGpu(getattr(self._library, name))


def chosen() -> list[Mutant]:
    """What is compared: first the kernels as they are."""
    return [NONE, *(mutant for mutant in mutants() if mutant.mutation in COMPARED)]


def launch(mutant: Mutant, compiler: Callable[[str], Any]) -> int:
    """Launch a mutant where it is used, a few times; the kernels as they are, everywhere."""
    launched = 0
    for call in LAUNCHES.values():
        changed: list[bool] = []

        def compile_mutant(source: str, changed: list[bool] = changed) -> Any:
            if not mutant.file:
                return compiler(source)
            changed.append(mutant.original in source)
            return compiler(source.replace(mutant.original, mutant.text))

        call.run(compile_mutant)
        launched += any(changed)
        if launched == LAUNCHES_EACH:
            break
    return launched


def on_gpu(source: str) -> _Library:
    """The CUDA engine, for tensors of the host."""
    return _Library(metalsim.compile_shader(source, engine="cuda"))


def verdict(number: int) -> list[Hazard]:
    """What racecheck says of a mutant, in a process of its own."""
    return sanitize([sys.executable, "-m", __spec__.name, "--launch", str(number)], ["races"])


def main() -> None:
    """Print the table; with --launch, launch one mutant."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--launch", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, help="write the table here as JSON")
    options = parser.parse_args()
    listed = chosen()
    if options.launch is not None:
        launch(listed[options.launch], on_gpu)
        return
    with ThreadPoolExecutor(AT_A_TIME) as pool:
        verdicts = list(pool.map(verdict, range(len(listed))))
    rows = [
        {
            "mutant": str(mutant).strip(),
            "simulator": "reported" if mutant.file else "clean",
            "racecheck": "reported" if hazards else "clean",
            "first": str(hazards[0]) if hazards else "",
        }
        for mutant, hazards in zip(listed, verdicts, strict=True)
    ]
    for row in rows:
        print(f"{row['mutant']:60} {row['simulator']:10} {row['racecheck']}")
    machine = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    if options.output:
        options.output.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
