"""Errors with the lines of source that they are about."""

from __future__ import annotations

import re
from pathlib import Path

from .errors import PROGRAM_SOURCE, CheckError, SimulationError

_LINE = re.compile(rf"(?:\bline |{PROGRAM_SOURCE}:)(\d+)")
_LINE_OF_SOURCE = re.compile(rf"{PROGRAM_SOURCE}:(\d+)")
_OWN_INCLUDE = re.compile(r"^\s*#\s*include\s+(?!<metal_)", re.MULTILINE)
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


def quote_finding(error: SimulationError, kernel: str, file: str, source: str) -> str:
    """What went wrong in a launch of `kernel`, with the lines of `source` that it names; the source
    goes by the name `file`."""
    message = str(error).replace(f"{PROGRAM_SOURCE}:", f"{file}:")
    if not isinstance(error, CheckError):  # whose findings say where they are
        message = f"{file}: kernel {kernel}: {error.kind} error: {message}"
    text = [message]
    # A bare "line 4" may be one of an included file.
    pattern = _LINE_OF_SOURCE if _OWN_INCLUDE.search(source) else _LINE
    for line in sorted({int(match[1]) for match in pattern.finditer(str(error))}):
        if quoted := line_of(source, line):
            text.append(f"  {line:>5} | {quoted}")
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
