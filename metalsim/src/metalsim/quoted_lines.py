"""Errors with the lines of source that they are about."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import PROGRAM_SOURCE

_ERROR = re.compile(r"(.+?):(\d+):(\d+): error: .*")


def quote_errors(errors: str, path: Path, source: str) -> str:
    """The compiler's errors, each with its line and a caret under its column."""
    text = list[str]()
    for error in errors.splitlines():
        match = _ERROR.fullmatch(error)
        if match is None:
            text.append(error)
            continue
        file, line, column = match[1], int(match[2]), int(match[3])
        own = file == PROGRAM_SOURCE
        text.append(f"{path}{error.removeprefix(file)}" if own else error)
        quoted = line_of(source, line) if own else line_of_file(Path(file), line)
        if quoted:
            margin = re.sub(r"[^\t]", " ", quoted[: column - 1])
            text += [f"  {quoted}", f"  {margin}^"]
    return "\n".join(text)


def line_of(source: str, line: int) -> str:
    """Line number `line`; empty where there is none."""
    lines = source.splitlines()
    return lines[line - 1] if 0 < line <= len(lines) else ""


def line_of_file(path: Path, line: int) -> str:
    """The same of a file, which may not exist."""
    try:
        return line_of(path.read_text(encoding="utf-8"), line)
    except OSError:
        return ""
