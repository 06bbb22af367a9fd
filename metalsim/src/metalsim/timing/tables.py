"""Text tables: a line a row, a word a field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

Row = TypeVar("Row")


def read_table(
    path: Path,
    row: Callable[..., Row],
    converters: Mapping[type, Callable[[str], Any]] | None = None,
) -> list[Row]:
    """The rows of a text file, each word converted to the type of its field of the named tuple
    `row`, whose last field takes the rest of the line. A bool is 0 or 1; lines of # are comments.

    `converters` are for types that are not made from their word alone.
    """
    known: dict[type, Callable[[str], Any]] = {bool: _flag, **(converters or {})}
    kinds = get_type_hints(row).values()
    convert = [known.get(kind) or kind for kind in kinds]
    lines = path.read_text(encoding="ascii").splitlines()
    used = (line for line in lines if line and not line.startswith("#"))
    words = (line.split(maxsplit=len(convert) - 1) for line in used)
    return [row(*(make(word) for make, word in zip(convert, line, strict=True))) for line in words]


def _flag(word: str) -> bool:
    return {"0": False, "1": True}[word]
