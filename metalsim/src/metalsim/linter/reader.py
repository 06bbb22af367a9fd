"""The preprocessor for lint: text that is not ASCII is a finding, and the rest is read on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..frontend import Preprocessor
from .findings import LintFinding


class Reader(Preprocessor):
    """`findings` has one for the first such character of each file."""

    def __init__(
        self, include_dirs: Sequence[Path], system_dirs: Sequence[Path], metal_version: int
    ) -> None:
        super().__init__(include_dirs, system_dirs, metal_version)
        self.findings: list[LintFinding] = []

    def _file(self, text: str, source: str, path: Path | None) -> None:
        if not text.isascii():
            at = next(index for index, character in enumerate(text) if not character.isascii())
            line, column = text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)
            message = f"character U+{ord(text[at]):04X}: torch.mps.compile_shader takes ASCII alone"
            self.findings.append(LintFinding("ascii", source, line, column, message))
            text = text.encode("ascii", "replace").decode("ascii")
        super()._file(text, source, path)
