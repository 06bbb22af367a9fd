"""What `make lint` looks at: every kernel, and faults in them would be seen."""

from __future__ import annotations

from importlib import resources

import pytest

import metalsim
from flashmetal.engines.metal import msl

from .lint_variants import rendered_sources

SOURCES = rendered_sources()


def test_every_source_file_is_linted() -> None:
    files = {file.name for file in resources.files(msl).iterdir() if "." in file.name}
    linted = {name for name in files if any(f'"{name}"' in text for text in SOURCES.values())}
    assert linted == {name for name in files if name.endswith((".h", ".metal"))}


@pytest.mark.parametrize(
    ("kernel", "right", "wrong", "rule"),
    [
        ("tile", "threadgroup Element* tile;", "device Element* tile;", "address-space"),
        ("tile", "int diagonal() const thread", "int diagonal() thread", "type"),
        ("decode", "const device Element* row", "const Element* row", "address-space"),
    ],
)
def test_planted_faults_are_found(kernel: str, right: str, wrong: str, rule: str) -> None:
    source = next(text for name, text in SOURCES.items() if name.startswith(f"{kernel} "))
    assert right in source
    findings = metalsim.lint(source.replace(right, wrong))
    assert rule in {finding.rule for finding in findings}
