"""The C++ compiler's messages as Metal's: `program_source:LINE:COLUMN: error: ...`, at the user's
line and column."""

from __future__ import annotations

from typing import NamedTuple

from .frontend import Translation

_KINDS = ("fatal error", "error", "warning", "note", "required from here")
_MACRO_WORDS = {
    "METALSIM_DEVICE ": "",
    "METALSIM_CONSTANT ": "",
    "METALSIM_THREADGROUP ": "",
    "METALSIM_THREAD ": "",
}


class Message(NamedTuple):
    """One message of the compiler, at a line and column of what it was given."""

    kind: str
    source: str
    line: int
    column: int
    text: str


def compile_error(output: str, translation: Translation) -> SyntaxError | None:
    """All errors of the compiler's `output` as one SyntaxError, placed at the first; None if it
    holds none."""
    messages = read_messages(output)
    user_sources = {segment.source for segment in translation.preprocessed.segments}
    found = list[Message]()
    for index, message in enumerate(messages):
        if message.kind not in ("error", "fatal error"):
            continue
        placed = in_user_source(messages, index, user_sources)
        if placed is not None and placed not in found:
            found.append(placed)
    if not found:
        return None
    placed = [to_user_column(message, translation) for message in found]
    text = "\n".join(
        f"{message.source}:{message.line}:{message.column}: error: {message.text}"
        for message in placed
    )
    first = placed[0]
    quoted = translation.preprocessed.line_text(first.source, first.line)
    return SyntaxError(text, (first.source, first.line, first.column, quoted))


def read_messages(output: str) -> list[Message]:
    """The messages in what a compiler printed."""
    return [message for line in output.splitlines() if (message := _parse(line))]


def _parse(line: str) -> Message | None:
    for kind in _KINDS:
        place, separator, text = line.partition(f" {kind}: ")
        if kind == "required from here" and line.endswith(kind):
            place, separator, text = line[: -len(kind)].rstrip(), kind, kind
        if not separator:
            continue
        parts = place.rstrip(":").rsplit(":", 2)
        if len(parts) == 3 and parts[1].isdigit() and parts[2].isdigit():
            return Message(kind, parts[0], int(parts[1]), int(parts[2]), text)
    return None


def in_user_source(messages: list[Message], index: int, user_sources: set[str]) -> Message | None:
    """The error itself, or where the user's source led to an error inside metalsim's headers."""
    error = messages[index]
    if error.source in user_sources:
        return error
    after = messages[index + 1 :]
    following = next(
        (at for at, other in enumerate(after) if other.kind.endswith("error")), len(after)
    )
    before = [
        other for other in messages[max(0, index - 4) : index] if other.kind == "required from here"
    ]
    for note in (*before[::-1], *after[:following]):
        if note.source in user_sources:
            return note._replace(kind="error", text=error.text)
    return None


def to_user_column(message: Message, translation: Translation) -> Message:
    """The message at the column of the user's source, in the user's words."""
    column = translation.columns.original(message.source, message.line, message.column)
    text = message.text
    for macro, word in _MACRO_WORDS.items():
        text = text.replace(macro, word)
    return message._replace(column=column, text=text)
