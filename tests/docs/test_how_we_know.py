"""The tables of docs/how_we_know.md are what was recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how_we_know.md").read_text()


def recorded(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_every_mutant_stands_with_both_verdicts() -> None:
    lines: dict[str, list[str]] = {}
    for row in recorded("barriers")["rows"]:
        first, second = (row[name].partition(":")[0] for name in ("metalsim", "nvidia"))
        if row["file"]:
            verdicts = lines.setdefault(f"{row['file']} {row['barrier']}", [])
            verdicts.append(f"{first} / {second}")
        else:
            assert (first, second) == ("clean", "clean")
    for barrier, verdicts in lines.items():
        assert f"| {barrier} | {' | '.join(verdicts)} |" in PAGE.replace("|  |", "|")


def test_models_stand_with_their_errors() -> None:
    for found in recorded("nvidia_models")["runs"].values():
        assert found["right"]
        assert found["commit"] in PAGE
        if "ours_error" in found:
            assert f"| {found['ours_error']:.1e} | {found['eager_error']:.1e} |" in PAGE
