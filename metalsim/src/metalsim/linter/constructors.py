"""The program as clang's OpenCL C++ front end can read it: `float4(a, b)` becomes a call.

The vectors there are the compiler's own, which have swizzles and arithmetic in every address space
but no constructors.
"""

from __future__ import annotations

import re

from ..frontend.syntax import closing, closing_angle
from ..frontend.tokens import IDENTIFIER, NUMBER, PUNCTUATOR, Token, spell

_VECTOR = re.compile(r"(bool|char|uchar|short|ushort|int|uint|long|ulong|half|bfloat|float)[234]")
_BEFORE_CAST = frozenset({"return", "else", "case"})
_BEFORE_BODY = frozenset({")", "const", "METALSIM_THREAD", "METALSIM_DEVICE", "METALSIM_CONSTANT"})
_NO_TYPE_BEFORE = frozenset({".", "->", "class", "struct", "typename", "operator", "~"})


def call_constructors(tokens: list[Token]) -> list[Token]:
    """`tokens` with each `T(...)` that makes a vector, or may make one, as a call of
    metalsim_construct<T>, and so what else makes one; tokens stay where they are."""
    output, names = list(tokens), _type_names(tokens)
    _convert_casts(tokens, output)
    _initialize_variables(tokens, output)
    for at, token in enumerate(tokens[:-1]):
        before = tokens[at - 1].text if at else ""
        if token.text == "vec" and tokens[at + 1].text == "<":
            _construct_template(tokens, at, output)
            continue
        is_own = token.text in names and before != "::"
        if not is_own and not _VECTOR.fullmatch(token.text):
            continue
        is_call = tokens[at + 1].text == "(" and before not in _NO_TYPE_BEFORE
        if is_call and not _declares(tokens, at):
            output[at] = token._replace(text=_construct(token.text, before))
    return output


def _construct(name: str, before: str) -> str:
    return f"{'' if before == '::' else 'metal::'}metalsim_construct<{name}>"


def _construct_template(tokens: list[Token], at: int, output: list[Token]) -> None:
    """`vec<T, N>(...)`, and `vec<bool, N>`, of which the compiler has no such vectors."""
    end = closing_angle(tokens, at + 1)
    if end is None:
        return
    name = "metalsim_vector" if tokens[at + 2].text == "bool" else "vec"
    is_conversion = at > 0 and tokens[at - 1].text == "operator"
    is_call = end + 1 < len(tokens) and tokens[end + 1].text == "(" and not is_conversion
    if is_call and not _declares(tokens, end):
        output[at] = tokens[at]._replace(text=f"metalsim_construct<{name}")
        output[end] = tokens[end]._replace(text=">>")
    else:
        output[at] = tokens[at]._replace(text=name)


def _convert_casts(tokens: list[Token], output: list[Token]) -> None:
    """`static_cast<V>(x)` and `(V)x`, of which the compiler has fewer."""
    for at, token in enumerate(tokens[:-3]):
        end = _end_of_vector(tokens, at + 1)
        if end is None:
            continue
        opened, closed = token.text, tokens[end].text
        if opened == "<" and closed == ">" and tokens[at - 1].text == "static_cast":
            output[at - 1] = tokens[at - 1]._replace(text="metal::metalsim_construct")
        elif opened == "(" and closed == ")" and _is_cast(tokens, at, end):
            output[at] = token._replace(text="metal::metalsim_cast<")
            output[end] = tokens[end]._replace(text=">()->*")


def _is_cast(tokens: list[Token], at: int, end: int) -> bool:
    before, behind = tokens[at - 1] if at else tokens[at], tokens[end + 1]
    is_free = before.text in _BEFORE_CAST or (
        before.kind == PUNCTUATOR and before.text not in ")]>"
    )
    return is_free and (behind.kind in (IDENTIFIER, NUMBER) or behind.text == "(")


def _end_of_vector(tokens: list[Token], at: int) -> int | None:
    """Index behind the name of a vector that begins at `at`; None where none does."""
    if tokens[at].text == "metal" and tokens[at + 1].text == "::":
        at += 2
    if _VECTOR.fullmatch(tokens[at].text):
        return at + 1
    if tokens[at].text != "vec" or tokens[at + 1].text != "<":
        return None
    end = closing_angle(tokens, at + 1)
    return None if end is None or end + 2 >= len(tokens) else end + 1


def _initialize_variables(tokens: list[Token], output: list[Token]) -> None:
    """`V name(a, b);` in functions as `V name = V(a, b);`."""
    inside = list[bool]()
    for at, token in enumerate(tokens[:-3]):
        if token.text == "{":
            is_body = bool(at) and tokens[at - 1].text in _BEFORE_BODY
            inside.append(is_body or bool(inside and inside[-1]))
        elif token.text == "}" and inside:
            inside.pop()
        elif inside and inside[-1]:
            end = _end_of_vector(tokens, at)
            if end is not None and (not at or tokens[at - 1].text not in ("<", "::", ",")):
                vector = spell(tokens[at:end]).replace("vec<bool", "metalsim_vector<bool")
                _initialize(tokens, end, vector, output)


def _initialize(tokens: list[Token], at: int, vector: str, output: list[Token]) -> None:
    """The declarators from `at` on."""
    while tokens[at].kind == IDENTIFIER and tokens[at + 1].text == "(":
        end = closing(tokens, at + 1) + 1
        if tokens[end].text not in (";", ","):
            return
        name = tokens[at]
        output[at] = name._replace(text=f"{name.text} = metal::metalsim_construct<{vector}>")
        at = end + 1


def _declares(tokens: list[Token], at: int) -> bool:
    """Whether the '(' behind `at` belongs to a declarator: `T (&name)[4]`, `T (*name)(int)`."""
    words = [token.text for token in tokens[at + 2 : at + 6]]
    return words[:1] in (["&"], ["*"]) and words[2:3] == [")"] and words[3:4] in (["["], ["("])


def _type_names(tokens: list[Token]) -> set[str]:
    """Names of types that may stand for vectors: parameters of templates, aliases, typedefs."""
    names = set[str]()
    for at, token in enumerate(tokens[:-2]):
        name, behind = tokens[at + 1], tokens[at + 2]
        is_parameter = token.text in ("typename", "class") and behind.text in (",", ">", "=")
        is_alias = token.text == "using" and behind.text == "="
        if is_parameter or is_alias:
            names.add(name.text)
        elif token.text == "typedef":
            end = next((i for i in range(at, len(tokens)) if tokens[i].text == ";"), at + 1)
            names.add(tokens[end - 1].text)
    return names
