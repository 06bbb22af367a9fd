"""Tokens back to text, each at the line and column where the user wrote it."""

from __future__ import annotations

from bisect import bisect_right

from .tokens import Token

_BLANK_LINES = 8
"""Gaps of up to this many lines are filled with newlines, longer ones with a #line."""


class ColumnMap:
    """Where emitted text does not stand in the column it came from (macros, rewritten words)."""

    def __init__(self) -> None:
        self._moved: dict[tuple[str, int], list[tuple[int, int]]] = {}

    def line(self, source: str, line: int) -> list[tuple[int, int]]:
        """The (emitted, original) columns of one line, to be added to."""
        return self._moved.setdefault((source, line), [])

    def original(self, source: str, line: int, column: int) -> int:
        """The user's column for a column of the emitted text."""
        moved = sorted(self._moved.get((source, line), ()))
        at = bisect_right(moved, (column, 1 << 30)) - 1
        return moved[at][1] if at >= 0 else column


def emit(tokens: list[Token]) -> tuple[str, ColumnMap]:
    """The text of `tokens`, with `#line` wherever line numbers would drift, and the columns that
    moved."""
    parts, columns = list[str](), ColumnMap()
    source, line, column, previous = "", 0, 1, None
    moved: list[tuple[int, int]] | None = None
    for token in tokens:
        if token.line != line or token.source != source:
            gap = token.line - line
            if token.source == source and 0 < gap <= _BLANK_LINES:
                parts.append("\n" * gap)
            else:
                parts.append(f'\n#line {token.line} "{token.source}"\n')
            source, line, column, previous, moved = token.source, token.line, 1, None, None
        padding = token.column - column
        if padding <= 0 and previous is not None:
            padding = 0 if _may_touch(previous, token, padding) else 1
        if padding > 0:
            parts.append(" " * padding)
            column += padding
        if moved is None and column != token.column:
            moved = columns.line(source, line)
        if moved is not None:
            moved.append((column, token.column))
        parts.append(token.text)
        column += len(token.text)
        previous = token
    parts.append("\n")
    return "".join(parts), columns


def _may_touch(previous: Token, token: Token, padding: int) -> bool:
    """Whether two tokens can stand side by side and stay two tokens, or the one operator they
    were."""
    if previous.text == ">" and token.text[0] == ">":
        return not token.spaced
    return padding == 0 and not token.spaced and not previous.hidden and not token.hidden
