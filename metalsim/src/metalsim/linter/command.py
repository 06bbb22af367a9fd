"""`metalsim lint`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..errors import PROGRAM_SOURCE
from ..include_path import add_include_option
from ..quoted_lines import quote_errors
from .clang import find_clang
from .findings import RULES, LintFinding
from .run import NEEDS_CLANG, VERSIONS, lint


def add_lint(parser: argparse.ArgumentParser) -> None:
    """The arguments of `metalsim lint`."""
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument(
        "--metal-version",
        choices=VERSIONS,
        default="3.1",
        help="the language that the files are for (default: %(default)s, that of macOS 14)",
    )
    add_include_option(parser)
    parser.add_argument(
        "--ignore",
        action="append",
        choices=RULES,
        default=[],
        metavar="RULE",
        help=f"leave out a rule: {', '.join(RULES)}",
    )
    parser.add_argument("--json", action="store_true", help="print JSON instead of text")


def lint_files(options: argparse.Namespace) -> int:
    """Lint every file; 1 if there are findings, 2 if a file cannot be read."""
    records = list[dict[str, object]]()
    if find_clang() is None:
        left_out = ", ".join(NEEDS_CLANG)
        print(
            "metalsim: there is no clang here, so lint leaves out conversions between address "
            f"spaces and the rules {left_out}",
            file=sys.stderr,
        )
    for path in options.files:
        try:
            source = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            print(f"metalsim: {path}: {error}", file=sys.stderr)
            return 2
        found = lint(
            source,
            metal_version=options.metal_version,
            include_dirs=[path.parent, *options.include],
        )
        found = [finding for finding in found if finding.rule not in options.ignore]
        records += [_record(finding, path) for finding in found]
        if found and not options.json:
            print(quote_errors("\n".join(map(str, found)), path, source))
    if options.json:
        print(json.dumps(records, indent=2))
    return 1 if records else 0


def _record(finding: LintFinding, path: Path) -> dict[str, object]:
    file = str(path) if finding.source == PROGRAM_SOURCE else finding.source
    return {"file": file, **finding._asdict()}
