"""What `metalsim check` prints: a table (without rich, plain text) or JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from .errors import PROGRAM_SOURCE
from .findings import Access, Finding


class Report(NamedTuple):
    """What was found in one launch of `kernel`, a kernel of the file `path` with this `source`."""

    path: Path
    source: str
    kernel: str
    findings: Sequence[Finding]

    def json(self) -> str:
        """`{"file", "kernel", "findings"}`, each finding with the fields of `Finding` and its
        message."""
        findings = [
            {
                **self._as_record(finding),
                "other": None if finding.other is None else self._as_record(finding.other),
                "message": self._message(finding),
            }
            for finding in self.findings
        ]
        record = {"file": str(self.path), "kernel": self.kernel, "findings": findings}
        return json.dumps(record, indent=2)

    def show(self) -> None:
        """Print to standard output: the accesses with their lines, then each finding in words."""
        count = len(self.findings)
        amount = f"{count or 'no'} finding{'' if count == 1 else 's'}"
        print(f"{self.path}: kernel {self.kernel}: {amount}")
        if count == 0:
            return
        try:
            self._show_table()
        except ModuleNotFoundError:  # rich is a convenience
            for row in (row for finding in self.findings for row in self._rows(finding)):
                print("  ".join(row))
        for finding in self.findings:
            print(self._message(finding))

    def _show_table(self) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table("kind", "memory", "access", "line", "source")
        for finding in self.findings:
            for row in self._rows(finding):
                table.add_row(*map(Text, row))
            table.add_section()
        Console().print(table)

    def _rows(self, finding: Finding) -> list[tuple[str, ...]]:
        """A row for each side."""
        memory = f"{finding.space} {finding.variable}".strip()
        first = (finding.kind, memory, *self._side(finding))
        return [first] if finding.other is None else [first, ("", "", *self._side(finding.other))]

    def _side(self, side: Finding | Access) -> tuple[str, str, str]:
        lines = self.source.splitlines() if side.file == PROGRAM_SOURCE else []
        quoted = lines[side.line - 1].strip() if 0 < side.line <= len(lines) else side.file
        return side.access, str(side.line), quoted

    def _as_record(self, side: Finding | Access) -> dict[str, Any]:
        return {**side._asdict(), "file": side.file.replace(PROGRAM_SOURCE, str(self.path))}

    def _message(self, finding: Finding) -> str:
        return str(finding).replace(f"{PROGRAM_SOURCE}:", f"{self.path}:")
