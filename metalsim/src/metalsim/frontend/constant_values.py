"""Integer constants of the program in attributes that need a number: `[[buffer(kOutput)]]`."""

from __future__ import annotations

from .conditions import Condition
from .syntax import closing, split_commas
from .tokens import IDENTIFIER, NUMBER, Token

_ATTRIBUTES = frozenset({"buffer", "required_threads_per_threadgroup"})
_DECLARING = frozenset({"constexpr", "constant", "const"})


def evaluate_attributes(tokens: list[Token]) -> list[Token]:
    """The program with numbers for the constants and enumerators that these attributes name. A
    name whose value is not known here stays."""
    places = [
        (at, closing(tokens, at + 1))
        for at, token in enumerate(tokens[:-1])
        if token.text in _ATTRIBUTES and tokens[at + 1].text == "("
    ]
    named = [
        (at, end)
        for at, end in places
        if any(token.kind == IDENTIFIER for token in tokens[at + 2 : end])
    ]
    if not named:
        return tokens
    values, result, copied = _values(tokens), list[Token](), 0
    for at, end in named:
        result += tokens[copied : at + 2] + _numbers(tokens[at + 2 : end], values)
        copied = end
    return result + tokens[copied:]


def _numbers(tokens: list[Token], values: dict[str, int]) -> list[Token]:
    """`tokens` with numbers for known names, qualified or not."""
    result = list[Token]()
    for at, token in enumerate(tokens):
        qualifies = token.text == "::" or (at + 1 < len(tokens) and tokens[at + 1].text == "::")
        if qualifies and tokens[-1].text in values:
            continue
        if token.kind == IDENTIFIER and token.text in values:
            token = token._replace(kind=NUMBER, text=str(values[token.text]))
        result.append(token)
    return result


def _values(tokens: list[Token]) -> dict[str, int]:
    values = dict[str, int]()
    for at, token in enumerate(tokens):
        if token.text == "enum":
            opening = next((i for i in range(at, len(tokens)) if tokens[i].text in "{;"), at)
            if tokens[opening].text == "{":
                _read_enumerators(tokens[opening + 1 : closing(tokens, opening)], values)
        elif token.text == "=" and at and tokens[at - 1].kind == IDENTIFIER:
            _read_constant(tokens, at, values)
    return values


def _read_enumerators(tokens: list[Token], values: dict[str, int]) -> None:
    following: int | None = 0
    for enumerator in split_commas(tokens):
        if len(enumerator) > 2 and enumerator[1].text == "=":
            following = _value(enumerator[2:], values)
        if following is None or not enumerator:
            return
        values[enumerator[0].text] = following
        following += 1


def _read_constant(tokens: list[Token], at: int, values: dict[str, int]) -> None:
    """`constexpr constant uint name = value;`, `at` its `=`."""
    start = at
    while start and tokens[start - 1].text not in (";", "{", "}"):
        start -= 1
    end = next((i for i in range(at, len(tokens)) if tokens[i].text in (";", ",")), len(tokens))
    if _DECLARING & {token.text for token in tokens[start:at]}:
        value = _value(tokens[at + 1 : end], values)
        if value is not None:
            values[tokens[at - 1].text] = value


def _value(tokens: list[Token], values: dict[str, int]) -> int | None:
    numbers = _numbers(tokens, values)
    if not numbers or any(token.kind == IDENTIFIER for token in numbers):
        return None
    try:
        return Condition(numbers, numbers[0]).value()
    except SyntaxError:  # not of integers alone
        return None
