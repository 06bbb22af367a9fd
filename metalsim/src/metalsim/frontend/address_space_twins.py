"""Declarations that differ in address spaces alone: a CPU has one, so the first of them serves."""

from __future__ import annotations

from collections.abc import Iterator

from .syntax import ADDRESS_SPACES, closing, outer_texts
from .tokens import Token

_TYPES = frozenset({"struct", "class", "union", "enum"})


def erase_twins(tokens: list[Token]) -> list[Token]:
    """`tokens` without each definition that repeats one of the same namespace or class, word for
    word but for address spaces, such as `operator T() const device` after `operator T() const
    thread`. Others stay, and the C++ compiler may call them redefinitions."""
    erased = sorted(_twins(tokens, 0, len(tokens), {}, ()))
    output, at = list[Token](), 0
    for start, end in erased:
        output += tokens[at:start]
        at = end
    return output + tokens[at:] if erased else tokens


_Seen = dict[tuple[str, ...], dict[tuple[str, ...], set[tuple[str, ...]]]]
"""By namespace: definitions without their address spaces, and the ways they were written."""


def _twins(
    tokens: list[Token], start: int, end: int, seen: _Seen, names: tuple[str, ...]
) -> Iterator[tuple[int, int]]:
    """The ranges of twins between `start` and `end`, which lie in the namespaces `names`."""
    for first, brace, last in _declarations(tokens, start, end):
        if brace is None:
            continue
        head = [token.text for token in tokens[first:brace]]
        body_end = closing(tokens, brace)
        if "namespace" in head:
            yield from _twins(tokens, brace + 1, body_end, seen, (*names, *head))
            continue
        written = tuple(token.text for token in tokens[first:last])
        ways = seen.setdefault(names, {}).setdefault(_without_spaces(written), set())
        is_twin = bool(ways) and written not in ways
        ways.add(written)
        if is_twin:
            yield first, last
        elif _is_type(tokens[first:brace]):
            yield from _twins(tokens, brace + 1, body_end, {}, ())


def _without_spaces(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in ADDRESS_SPACES)


def _declarations(
    tokens: list[Token], start: int, end: int
) -> Iterator[tuple[int, int | None, int]]:
    """Where each declaration begins, its first brace, and where it ends."""
    first, brace, at = start, None, start
    while at < end:
        text = tokens[at].text
        if text in ("(", "["):
            at = closing(tokens, at)
        elif text == "{":
            brace = at if brace is None else brace
            at = closing(tokens, at)
            if _ends(tokens[first:brace], tokens[at + 1 : at + 2]):
                yield first, brace, at + 1
                first, brace = at + 1, None
        elif text == ";":
            yield first, brace, at + 1
            first, brace = at + 1, None
        at += 1


def _ends(head: list[Token], following: list[Token]) -> bool:
    """Whether a declaration ends behind a brace, which closed a body and no list."""
    words = outer_texts(head)
    is_list = "=" in words and "operator" not in words
    is_constructor = ":" in words and bool(following) and following[0].text in (",", "{")
    return not is_list and not is_constructor and not _is_type(head)


def _is_type(head: list[Token]) -> bool:
    """Whether the declaration is one of a class, which goes on to a `;`."""
    words = outer_texts(head)
    return "(" not in words and bool(_TYPES & set(words))
