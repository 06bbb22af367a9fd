"""`python -m metalsim.fidelity record | compare FILE`; needs numpy, and torch on a Mac."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .record import differences, record_mac, record_metalsim


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status, 1 where a kernel failed."""
    parser = argparse.ArgumentParser("metalsim.fidelity", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    record = commands.add_parser("record", help="run the corpus and write what it gives")
    record.add_argument(
        "--on", choices=("mac", "metalsim"), default="mac", help="default: %(default)s"
    )
    record.add_argument("--output-dir", type=Path, default=Path(), help="default: this folder")
    compare = commands.add_parser("compare", help="metalsim, here and now, against a record")
    compare.add_argument("record", type=Path)
    options = parser.parse_args(arguments)
    if options.command == "compare":
        return _compare(json.loads(options.record.read_text(encoding="utf-8")))
    return _record(record_mac() if options.on == "mac" else record_metalsim(), options.output_dir)


def _record(record: dict[str, Any], directory: Path) -> int:
    words = f"{record['date']} {record['chip']} {record['system']} {record['device']}"
    path = directory / f"{re.sub(r'[^a-z0-9.]+', '-', words.lower())}.json"
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    results = record["results"]
    failed = {name: result["error"] for name, result in results.items() if "error" in result}
    print(f"{path}: {len(results) - len(failed)} kernels of {len(results)}")
    for name, error in failed.items():
        print(f"{name} failed: {error}", file=sys.stderr)
    return 1 if failed else 0


def _compare(record: dict[str, Any]) -> int:
    own = record_metalsim()
    compared = differences(record, own)
    print(f"{record['chip']}, {record['system']}, {record['date']} against metalsim")
    for found in compared:
        units = f", at most {found.units} units in the last place" if found.units else ""
        amount = f"{found.different} of {found.elements} differ{units}"
        print(f"{found.launch} buffer {found.buffer}: {amount if found.different else 'equal'}")
    missing = [name for name in own["results"] if name not in {found.launch for found in compared}]
    for name in missing:
        print(f"{name}: not in the record in its present form")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
