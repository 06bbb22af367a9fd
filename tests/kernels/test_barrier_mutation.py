"""Take each barrier of the Metal kernels away, or weaken it: the checkers must report it.

The barriers are read from the sources, so a new kernel is tested as soon as LAUNCHES launches it. A
barrier whose loss no launch shows is needless, or stands in UNREPORTED with the reason.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import NamedTuple

import pytest

import metalsim
from flashmetal.engines.metal import msl

from .launches import LAUNCHES

_BARRIER = re.compile(r"\b(threadgroup|simdgroup)_barrier\(([^;]*?)\)(?=;)")
_FLAG = re.compile(r"mem_flags::mem_(?!none)\w+")

# (file, which barrier of the file, mutation): why no checker can see it.
UNREPORTED: dict[tuple[str, int, str], str] = {}


class Mutant(NamedTuple):
    """A file of the kernels, whole, with its barrier number `barrier` changed."""

    file: str
    barrier: int
    mutation: str
    original: str
    text: str

    def __str__(self) -> str:
        return f"{self.file} barrier {self.barrier} {self.mutation}"


def mutations(call: re.Match[str]) -> dict[str, str]:
    """What may stand in the place of a barrier, by name."""
    scope, argument = call[1], call[2]
    flags = _FLAG.findall(argument)
    changed = {"deleted": "(void)0"}
    for flag in flags:
        rest = " | ".join(other for other in flags if other != flag) or "mem_flags::mem_none"
        changed[f"without {flag}"] = f"{scope}_barrier({rest})"
    if scope == "threadgroup":
        changed["of simdgroups"] = f"simdgroup_barrier({argument})"
    return changed


def mutants() -> list[Mutant]:
    files = sorted(resources.files(msl).iterdir(), key=lambda path: path.name)
    return [
        Mutant(path.name, number, name, text, text[: call.start()] + by + text[call.end() :])
        for path in files
        if path.name.endswith((".metal", ".h"))
        for text in [path.read_text()]
        for number, call in enumerate(_BARRIER.finditer(text), 1)
        for name, by in mutations(call).items()
    ]


def is_reported(mutant: Mutant) -> bool:
    """Whether a launch that contains the mutant has findings, or ends with an error."""

    def compile_mutant(source: str) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(source.replace(mutant.original, mutant.text), check=True)

    concerned = [name for name, text in sources().items() if mutant.original in text]
    assert concerned, f"no launch of LAUNCHES uses {mutant.file}: add one"
    for name in concerned:
        try:
            LAUNCHES[name].run(compile_mutant)
        except metalsim.SimulationError:
            return True
    return False


@cache
def sources() -> dict[str, str]:
    """All that each launch compiles."""
    return {name: "".join(launch.sources()) for name, launch in LAUNCHES.items()}


@pytest.mark.parametrize("mutant", mutants(), ids=str)
def test_a_barrier_lost_is_reported(mutant: Mutant) -> None:
    reason = UNREPORTED.get((mutant.file, mutant.barrier, mutant.mutation))
    assert is_reported(mutant) == (reason is None), reason or "needless, or a launch is missing"


def test_reasons_are_for_barriers_that_exist() -> None:
    assert set(UNREPORTED) <= {mutant[:3] for mutant in mutants()}
