"""Tiles measured on this machine by ``flashmetal tune``: a JSON file beside the verdicts."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

from .machine_files import replace_text
from .tiles import Row


def read_rows(path: Path, machine: str) -> tuple[Row, ...]:
    """The rows of a file, the latest first; none with a warning where it cannot be used.

    ``machine`` is :func:`.machine_files.machine_name`: rows of another one are not taken.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["machine"] != machine:
            _warn(path, f"it is of {content['machine']}, and this is {machine}")
            return ()
        return tuple(Row.parse(line) for line in content["rows"])
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        _warn(path, f"{type(error).__name__}: {error}")
        return ()


def keep_row(path: Path, machine: str, row: Row) -> None:
    """Add a row, in place of one for the same problems. Raises OSError."""
    rows = [other for other in read_rows(path, machine) if _serves(other) != _serves(row)]
    content: dict[str, Any] = {"machine": machine, "rows": [str(x) for x in (row, *rows)]}
    replace_text(path, json.dumps(content, indent=1) + "\n")


def _serves(row: Row) -> tuple[Any, ...]:
    return row.kernel, row.tile.unit, row.bits, row.head_dim, row.size


def _warn(path: Path, why: str) -> None:
    warnings.warn(
        f"flashmetal: the measured tiles in {path} are not used ({why}); tiles.txt serves. Delete "
        "the file, or write it anew with `flashmetal tune`",
        RuntimeWarning,
        stacklevel=3,
    )
