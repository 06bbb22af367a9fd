"""Declarations of a thread's own arrays: one macro each, for checking builds to watch them."""

from __future__ import annotations

from typing import NamedTuple

from .syntax import closing, is_attribute, skip_type_name, split_commas
from .tokens import IDENTIFIER, PUNCTUATOR, Token

_SPECIFIERS = frozenset({"thread", "typename", "struct"})
_NO_TYPE = frozenset(
    """break case const constant constexpr continue default delete device do else extern for goto if
    inline new operator return sizeof static switch template threadgroup typedef using volatile
    while""".split()
)


class Declaration(NamedTuple):
    """The rewritten declaration, and its type for the declarators behind an initializer."""

    tokens: list[Token]
    type_tokens: tuple[Token, ...]


def rewrite_private_arrays(statement: list[Token], initialized: bool) -> Declaration | None:
    """`T a[n], b;`, or what stands in front of an initializer's brace if `initialized`; None for
    other statements, and for constants and arrays without a length, which are not watched."""
    found = _read_type(statement)
    if found is None:
        return None
    type_tokens, at = found
    declarators, output, has_array = split_commas(statement[at:]), list[Token](), False
    for number, declarator in enumerate(declarators, 1):
        is_braced = initialized and number == len(declarators)
        rewritten = _declare(type_tokens, declarator, is_braced)
        if rewritten is None:
            return None
        if output:
            output.append(declarator[0]._replace(kind=PUNCTUATOR, text=";"))
        output += rewritten
        has_array = has_array or _dimensions_end(declarator) > 1
    return Declaration(output, tuple(type_tokens)) if has_array else None


def _read_type(statement: list[Token]) -> tuple[list[Token], int] | None:
    """The type without `thread`, and the index of the first declarator."""
    start = 0
    while start < len(statement) and statement[start].text in _SPECIFIERS:
        start += 1
    if start == len(statement) or statement[start].text in _NO_TYPE:
        return None
    end = skip_type_name(statement, start)
    at = end + 1 if end < len(statement) and statement[end].text == "thread" else end
    if end == start or at >= len(statement) or statement[at].kind != IDENTIFIER:
        return None
    return [token for token in statement[:end] if token.text != "thread"], at


def _dimensions_end(declarator: list[Token]) -> int:
    at = 1
    while at < len(declarator) and declarator[at].text == "[" and not is_attribute(declarator, at):
        at = closing(declarator, at) + 1
    return at


def _declare(
    type_tokens: list[Token], declarator: list[Token], is_braced: bool
) -> list[Token] | None:
    if not declarator or declarator[0].kind != IDENTIFIER:
        return None
    name, end = declarator[0], _dimensions_end(declarator)
    rest = [token.text for token in declarator[end:]]
    if end == 1:
        return None if is_braced else [*type_tokens, *declarator]
    dimensions = declarator[1:end]
    is_unsized = "[]" in "".join(token.text for token in dimensions)
    if is_unsized or rest not in ([[], ["="]] if is_braced else [[]]):
        return None

    def mark(text: str) -> Token:
        return name._replace(kind=PUNCTUATOR, text=text)

    return [
        type_tokens[0]._replace(kind=IDENTIFIER, text="METALSIM_PRIVATE_ARRAY"),
        mark("("),
        name,
        *(mark(","), mark("("), *dimensions, mark(")"), mark(",")),
        *type_tokens,
        mark(")"),
    ]
