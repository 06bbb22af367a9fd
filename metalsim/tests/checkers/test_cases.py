"""The checkers against kernels whose findings are known.

The files in `cases` hold kernels and launches. A comment before a kernel is a launch of it, in the
words of `metalsim check`: `// finds NAME --buffers ...` where the marks below it are found, all of
them and nothing else, and `// clean NAME --buffers ...` where nothing is found. Marks stand on the
lines that are named:

    shared[i] = 1;          // race 1 write           the two lines with "race 1" are the two sides
    out[i] = shared[0];     // race 1 read; bounds write
    shared[0] = 1;          // race 2 write+write     both sides are this line
    *(device float4*)x = y; // alignment              which way, the compiler does not always say

Choice of cases: hazards as racecheck's (read after write, write after read, write after write), the
flags and scopes of barriers, what GPUVerify's suite has (loops, equal values, sizes of elements,
barriers in functions), and beside each kernel that is wrong the one that only looks like it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pytest

import metalsim
from metalsim.buffer_files import read_buffer

CASES = Path(__file__).parent / "cases"
_LAUNCH = re.compile(r"// (finds|clean) (\w+)((?: --\w+(?: [\w.:]+)+)+)")
_MARK = re.compile(r"(?:race (\d+)|(bounds|uninitialized|alignment))(?: ([a-z+]+))?")

Side = tuple[int, str]  # line and access


class Case(NamedTuple):
    """One launch; `expected` holds the kinds of finding, each with its sides."""

    file: str
    line: int
    kernel: str
    options: dict[str, list[str]]
    expected: frozenset[tuple[str, tuple[Side, ...]]]

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.kernel}"


def read_cases(path: Path) -> list[Case]:
    """The cases of a file: the marks of a kernel end where the launches of the next one begin."""
    lines = path.read_text().splitlines()
    launches = {at: match for at, line in enumerate(lines) if (match := _LAUNCH.fullmatch(line))}
    begins = dict[str, int]()
    for at, match in launches.items():
        begins.setdefault(match[2], at)
    ends = dict(zip(begins, [*begins.values(), len(lines)][1:], strict=True))
    cases = list[Case]()
    for at, match in launches.items():
        outcome, kernel = match[1], match[2]
        marked = read_marks(lines, at, ends[kernel])
        assert marked or outcome == "clean", f"{path.name}:{at + 1}: finds nothing that is marked"
        options = {words[0]: words[1:] for words in map(str.split, match[3].split(" --")[1:])}
        expected = marked if outcome == "finds" else frozenset()
        cases.append(Case(path.stem, at + 1, kernel, options, expected))
    return cases


def read_marks(lines: list[str], begin: int, end: int) -> frozenset[tuple[str, tuple[Side, ...]]]:
    """The findings marked in lines[begin:end]."""
    races, others = dict[str, list[Side]](), set[tuple[str, tuple[Side, ...]]]()
    for number, line in enumerate(lines[begin:end], begin + 1):
        code, _, comment = line.partition("//")
        if not code.strip():
            continue
        for race, kind, accesses in _MARK.findall(comment):
            sides = [(number, access) for access in accesses.split("+")]
            if race:
                races.setdefault(race, []).extend(sides)
            else:
                others.add((kind, tuple(sides)))
    assert all(len(sides) == 2 for sides in races.values()), f"a race has two sides: {races}"
    return frozenset(others | {("race", tuple(sorted(sides))) for sides in races.values()})


def found(findings: Iterable[metalsim.Finding]) -> set[tuple[str, tuple[Side, ...]]]:
    """Findings as the marks give them."""
    marks = set[tuple[str, tuple[Side, ...]]]()
    for finding in findings:
        sides = [finding] if finding.other is None else [finding, finding.other]
        lines = [(s.line, "" if finding.kind == "alignment" else s.access) for s in sides]
        marks.add((finding.kind, tuple(sorted(lines))))
    return marks


ALL_CASES = [case for path in sorted(CASES.glob("*.metal")) for case in read_cases(path)]
INDICES = [case for case in ALL_CASES if case.file == "indices"]
"""What g++ does not check."""


def launch(case: Case) -> list[metalsim.Finding]:
    library = metalsim.compile_shader((CASES / f"{case.file}.metal").read_text(), check=True)
    options = {
        name: [int(word) for word in case.options.get(name, [])] for name in ("threads", "group")
    }
    buffers = [read_buffer(slot, word).value for slot, word in enumerate(case.options["buffers"])]
    with metalsim.collect_findings() as findings:
        getattr(library, case.kernel)(
            *buffers, threads=options["threads"], group_size=options["group"] or None
        )
    return findings


@pytest.mark.parametrize("case", [case for case in ALL_CASES if case not in INDICES], ids=str)
def test_case(case: Case, compiler: str) -> None:
    assert_finds(case)


@pytest.mark.parametrize("case", INDICES, ids=str)
def test_index(case: Case, clang: str) -> None:
    assert_finds(case)


def assert_finds(case: Case) -> None:
    """In order and under a seed: what is found does not hang on the schedule."""
    for seed in (0, 1):
        with metalsim.schedule(seed=seed):
            findings = launch(case)
        report = "\n".join(map(str, findings)) or "nothing"
        assert found(findings) == case.expected, f"seed {seed} found:\n{report}"


def test_there_are_enough_cases() -> None:
    assert len({(case.file, case.kernel) for case in ALL_CASES}) >= 60
    clean = [case for case in ALL_CASES if not case.expected]
    assert len(clean) >= len(ALL_CASES) / 4
