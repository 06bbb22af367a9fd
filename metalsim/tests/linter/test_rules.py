"""Every rule accepts and refuses what it should, at the right line.

A file of cases/ belongs to the rule of its name. Its parts begin with `// accepts` or `// refuses`,
perhaps for a version of Metal; the lines to be found end in `// refused`.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest

import metalsim
from metalsim.linter import NEEDS_CLANG, RULES

CASES = Path(__file__).parent / "cases"
HEADER = "#include <metal_stdlib>\nusing namespace metal;\n"


class Part(NamedTuple):
    """One program of a file; its lines keep their numbers."""

    rule: str
    first: int
    refuses: bool
    version: str
    text: str

    def refused_lines(self) -> set[int]:
        lines = enumerate(self.text.splitlines(), self.first)
        return {number for number, line in lines if line.endswith("// refused")}


def read_parts(path: Path) -> list[Part]:
    parts = list[Part]()
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith(("// accepts", "// refuses")):
            version = line.partition(" for ")[2] or "3.1"
            parts.append(Part(path.stem, number, "refuses" in line, version, ""))
        parts[-1] = parts[-1]._replace(text=f"{parts[-1].text}{line}\n")
    return parts


PARTS = [part for path in sorted(CASES.glob("*.metal")) for part in read_parts(path)]


@pytest.mark.parametrize("part", PARTS, ids=[f"{part.rule}:{part.first}" for part in PARTS])
def test_rule(part: Part) -> None:
    source = f"{HEADER}#line {part.first}\n{part.text}"
    use_clang = part.rule == "address-space" or part.rule in NEEDS_CLANG or not part.refuses
    findings = metalsim.lint(source, metal_version=part.version, use_clang=use_clang)
    assert {(finding.rule, finding.line) for finding in findings} == {
        (part.rule, line) for line in part.refused_lines()
    }, "\n".join(map(str, findings))


def test_every_rule_has_an_accepting_and_a_refusing_example() -> None:
    examples = {(part.rule, part.refuses) for part in PARTS}
    assert {(rule, refuses) for rule in RULES for refuses in (True, False)} - examples == {
        ("ascii", True),
        ("ascii", False),
    }
    assert all(bool(part.refused_lines()) == part.refuses for part in PARTS)


def test_ascii() -> None:
    """Not among the cases, since the files of this repository are ASCII."""
    assert metalsim.lint(f"{HEADER}// plain\n") == []
    (finding,) = metalsim.lint(f"{HEADER}// caf\N{LATIN SMALL LETTER E WITH ACUTE}\n")
    assert (finding.rule, finding.line, finding.column) == ("ascii", 3, 7)
