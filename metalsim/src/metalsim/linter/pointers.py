"""The rule that every pointer and reference names its address space, read off the tokens."""

from __future__ import annotations

from collections.abc import Iterator

from ..frontend.syntax import (
    ADDRESS_SPACES,
    QUALIFIERS,
    closing,
    closing_angle,
    skip_type_name,
    split_attributes,
    split_commas,
)
from ..frontend.tokens import IDENTIFIER, Token
from .findings import LintFinding, finding_at
from .segments import Segment, parameters_of, without_templates

_MARKS = frozenset({"*", "&", "&&"})
_CONST = frozenset({"const", "volatile"})
_SPACES = ADDRESS_SPACES | {"object_data", "ray_data", "threadgroup_imageblock"}
_NO_TYPE = frozenset(
    "return else case throw sizeof new delete goto break continue default operator".split()
)
_WITH_EXPRESSION = frozenset({"alignas", "decltype", "__attribute__", "sizeof"})
_BEHIND_NAME = frozenset("= ; , [ ( { : )".split())


def check_pointers(segments: list[Segment]) -> Iterator[LintFinding]:
    """Findings about types that name no address space: of parameters, results, members, locals,
    casts and template arguments. What a type is deduced for (`auto&`) is left to the deduction."""
    seen = set[tuple[str, int, int]]()
    for segment in segments:
        tokens, _ = split_attributes(segment.tokens)
        for mark in (*_nameless(tokens), *_declared(tokens, segment.scope)):
            place = (mark.source, mark.line, mark.column)
            if place in seen:
                continue
            seen.add(place)
            kind = "pointer" if mark.text == "*" else "reference"
            message = (
                f"{kind} type must have explicit address space qualifier: "
                "device, constant, threadgroup or thread"
            )
            yield finding_at("address-space", mark, message)


def _declared(tokens: list[Token], scope: str) -> Iterator[Token]:
    if scope in ("namespace", "type"):
        yield from _declaration(without_templates(tokens))
    elif scope in ("function", "kernel"):
        yield from _statement(tokens)


def _declaration(tokens: list[Token]) -> Iterator[Token]:
    """Marks without an address space in a declaration outside of functions."""
    words = [token.text for token in tokens]
    if words[:1] == ["static_assert"]:
        return
    if words[:1] == ["using"]:
        yield from _specifiers(tokens[words.index("=") + 1 :] if "=" in words else [])
        return
    opening = parameters_of(tokens)
    if opening is None:
        end = next((i for i, word in enumerate(words) if word in ("=", "{")), len(tokens))
        yield from _specifiers(tokens[:end])
        return
    name = words.index("operator") if "operator" in words[:opening] else opening - 1
    yield from _specifiers(tokens[:name])
    for parameter in split_commas(tokens[opening + 1 : closing(tokens, opening)]):
        end = next((i for i, token in enumerate(parameter) if token.text == "="), len(parameter))
        yield from _specifiers(parameter[:end])


def _specifiers(tokens: list[Token]) -> Iterator[Token]:
    """Marks of one declaration with no address space between them and the mark before."""
    has_space, is_deduced, at = False, False, 0
    while at < len(tokens):
        text = tokens[at].text
        if text in _SPACES:
            has_space = True
        elif text == "auto":
            is_deduced = True
        elif text in _MARKS:
            # Metal takes `device T*& x` for a reference to a pointer in thread.
            is_of_pointer = at > 0 and text == "&" and tokens[at - 1].text == "*"
            if not has_space and not is_deduced and not is_of_pointer:
                yield tokens[at]
            has_space = is_deduced = False
        elif text == "<":
            at = closing_angle(tokens, at) or at
        elif text == "[" or (text == "(" and at and tokens[at - 1].text in _WITH_EXPRESSION):
            at = closing(tokens, at)
        at += 1


def _statement(tokens: list[Token]) -> Iterator[Token]:
    """Marks without an address space in the declaration that a statement begins with."""
    words = [token.text for token in tokens]
    if words[:1] == ["else"] or words[:1] == ["do"]:
        yield from _statement(tokens[1:])
    elif words[:1] and words[0] in ("for", "if", "while", "switch") and "(" in words[:3]:
        opening = words.index("(")
        end = closing(tokens, opening)
        condition = tokens[opening + 1 : end]
        if _BEHIND_NAME & {token.text for token in condition}:  # `a && b` declares nothing
            yield from _statement(condition)
        yield from _statement(tokens[end + 1 :])
    elif words[:1] == ["_Pragma"]:
        yield from _statement(tokens[closing(tokens, 1) + 1 :])
    elif words[:1] in (["using"], ["typedef"]):
        yield from _declaration(tokens)
    elif (end := _end_of_declarator(tokens)) is not None:
        yield from _specifiers(tokens[:end])


def _end_of_declarator(tokens: list[Token]) -> int | None:
    """Index behind `T* name` or `T (&name)[`, None where the tokens are an expression."""
    at = _skip(tokens, 0, QUALIFIERS | _SPACES)
    if at >= len(tokens) or tokens[at].text in _NO_TYPE:
        return None
    start = at
    at = _skip(tokens, skip_type_name(tokens, at), _CONST | _SPACES)
    if at == start or at >= len(tokens):
        return None
    is_wrapped = tokens[at].text == "("
    marks = at + is_wrapped
    at = _skip(tokens, marks, _MARKS | _CONST | _SPACES)
    if at == marks or at >= len(tokens) or tokens[at].kind != IDENTIFIER:
        return None
    behind = [token.text for token in tokens[at + 1 : at + 3]]
    if is_wrapped:
        return at if behind == [")", "["] else None
    return at if not behind or behind[0] in _BEHIND_NAME else None


def _skip(tokens: list[Token], at: int, words: frozenset[str]) -> int:
    while at < len(tokens) and tokens[at].text in words:
        at += 1
    return at


def _nameless(tokens: list[Token]) -> Iterator[Token]:
    """Marks that end a type, as in `(float*)x`, `reinterpret_cast<float*>(x)`, `f(float*, int)`."""
    for at in range(1, len(tokens) - 1):
        if tokens[at].text not in _MARKS or tokens[at - 1].text == "operator":
            continue
        after = _skip(tokens, at + 1, _CONST)
        if after >= len(tokens) or tokens[after].text not in (")", ">", ","):
            continue
        before = at - 1
        while before >= 0 and tokens[before].text not in ("(", "<", ",", ";", *_MARKS):
            before -= 1 if tokens[before].text != ">" else _angle_width(tokens, before)
        words = {token.text for token in tokens[before + 1 : at]}
        if not words & (_SPACES | {"auto"}):
            yield tokens[at]


def _angle_width(tokens: list[Token], at: int) -> int:
    """How many tokens the template arguments that end at `at` take."""
    depth, start = 0, at
    while start >= 0:
        depth += {">": 1, "<": -1}.get(tokens[start].text, 0)
        if depth == 0:
            return at - start + 1
        start -= 1
    return 1
