"""Small questions about token lists: matching brackets, splitting at commas, reading attributes
and types."""

from __future__ import annotations

from typing import NamedTuple

from .tokens import IDENTIFIER, STRING, Token, error_at

_CLOSING = {"(": ")", "[": "]", "{": "}"}
TYPE_WORDS = frozenset(
    {
        "unsigned",
        "signed",
        "int",
        "char",
        "short",
        "long",
        "float",
        "half",
        "bfloat",
        "bool",
        "auto",
        "void",
    }
)
QUALIFIERS = frozenset(
    {"const", "constexpr", "volatile", "static", "inline", "typename", "struct", "extern"}
)
ADDRESS_SPACES = frozenset({"device", "constant", "threadgroup", "thread"})


class Attribute(NamedTuple):
    """One attribute of `[[a, b(3)]]`; `name` holds its scope too (`clang::foo`)."""

    name: str
    arguments: list[Token]
    where: Token


def closing(tokens: list[Token], at: int) -> int:
    """Index of the bracket that closes the one at `at`: ( [ { only. SyntaxError where there is
    none."""
    end = _find_closing(tokens, at)
    if end is None:
        opening = tokens[at].text
        raise error_at(tokens[at], f"expected '{_CLOSING[opening]}' to match this '{opening}'")
    return end


def _find_closing(tokens: list[Token], at: int) -> int | None:
    opening = tokens[at].text
    close, depth = _CLOSING[opening], 0
    for index in range(at, len(tokens)):
        text = tokens[index].text
        if text == opening:
            depth += 1
        elif text == close:
            depth -= 1
            if depth == 0:
                return index
    return None


def closing_angle(tokens: list[Token], at: int) -> int | None:
    """Index of the '>' that closes the '<' at `at`, None where it is a comparison."""
    depth, index = 0, at
    while index < len(tokens):
        text = tokens[index].text
        if text == "<":
            depth += 1
        elif text == ">":
            depth -= 1
            if depth == 0:
                return index
        elif text in _CLOSING:
            end = _find_closing(tokens, index)
            if end is None:
                return None
            index = end
        elif text in (";", "}", ")", "]"):
            return None
        index += 1
    return None


def split_commas(tokens: list[Token]) -> list[list[Token]]:
    """Pieces between the commas outside every bracket, template brackets included."""
    pieces: list[list[Token]] = [[]]
    at = 0
    while at < len(tokens):
        text = tokens[at].text
        end = at
        if text in _CLOSING:
            end = closing(tokens, at)
        elif text == "<":
            end = closing_angle(tokens, at) or at
        if text == ",":
            pieces.append([])
        else:
            pieces[-1] += tokens[at : end + 1]
        at = end + 1
    return pieces if pieces != [[]] else []


def is_attribute(tokens: list[Token], at: int) -> bool:
    """Whether `[[` stands at `at`."""
    return tokens[at].text == "[" and at + 1 < len(tokens) and tokens[at + 1].text == "["


def read_attributes(tokens: list[Token], at: int) -> tuple[list[Attribute], int]:
    """The attributes of the `[[...]]` at `at`, and the index behind it."""
    end = closing(tokens, at)
    attributes = list[Attribute]()
    for piece in split_commas(tokens[at + 2 : end - 1]):
        if not piece:
            continue
        length = 1
        while length + 1 < len(piece) and piece[length].text == "::":
            length += 2
        name = "".join(token.text for token in piece[:length])
        arguments = piece[length + 1 : -1] if len(piece) > length else []
        attributes.append(Attribute(name, arguments, piece[0]))
    return attributes, end + 1


def split_attributes(tokens: list[Token]) -> tuple[list[Token], list[Attribute]]:
    """`tokens` without their attributes, and the attributes."""
    rest, attributes, at = list[Token](), list[Attribute](), 0
    while at < len(tokens):
        if is_attribute(tokens, at):
            found, at = read_attributes(tokens, at)
            attributes += found
        else:
            rest.append(tokens[at])
            at += 1
    return rest, attributes


def skip_type_name(tokens: list[Token], at: int) -> int:
    """Index behind the type name at `at` (`a::b<c>`, `unsigned int`, `decltype(x)`); `at` itself
    if there is none."""
    if at < len(tokens) and tokens[at].text in ("unsigned", "signed", "long", "short"):
        while at < len(tokens) and tokens[at].text in TYPE_WORDS:
            at += 1
        return at
    if at < len(tokens) and tokens[at].text == "::":
        at += 1
    while at < len(tokens) and tokens[at].kind == IDENTIFIER:
        is_decltype = tokens[at].text == "decltype"
        at += 1
        if is_decltype and at < len(tokens) and tokens[at].text == "(":
            at = closing(tokens, at) + 1
        if at < len(tokens) and tokens[at].text == "<":
            end = closing_angle(tokens, at)
            at = at if end is None else end + 1
        if at >= len(tokens) or tokens[at].text != "::":
            return at
        at += 2 if at + 1 < len(tokens) and tokens[at + 1].text == "template" else 1
    return at


def outer_texts(tokens: list[Token]) -> list[str]:
    """The words outside brackets, attributes and template lists; "(" stands for a whole
    parenthesis."""
    texts, at = list[str](), 0
    while at < len(tokens):
        text = tokens[at].text
        if text == "(":
            if texts[-1:] not in (["alignas"], ["__attribute__"], ["decltype"], ["_Pragma"]):
                texts.append(text)
            at = closing(tokens, at)
        elif text == "[":
            at = closing(tokens, at)
        elif text == "<" and (end := closing_angle(tokens, at)) is not None:
            at = end
        else:
            texts.append(text)
        at += 1
    return texts


def join_strings(tokens: list[Token]) -> str:
    """Adjacent string literals as the one string they mean."""
    for token in tokens:
        if token.kind != STRING:
            raise error_at(token, "expected a string literal")
    return "".join(token.text[1:-1] for token in tokens)
