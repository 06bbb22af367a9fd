"""The program as clang's OpenCL C++ front end can read it: `float4(a, b)` becomes a call.

The vectors there are the compiler's own, which have swizzles and arithmetic in every address space
but no constructors.
"""

from __future__ import annotations

import re

from ..frontend.syntax import closing_angle
from ..frontend.tokens import Token

_VECTOR = re.compile(r"(char|uchar|short|ushort|int|uint|long|ulong|half|bfloat|float)[234]")
_NO_TYPE_BEFORE = frozenset({".", "->", "class", "struct", "typename", "operator", "~"})


def call_constructors(tokens: list[Token]) -> list[Token]:
    """`tokens` with each `T(...)` that makes a vector, or may make one, as a call of
    metalsim_construct<T>; tokens stay where they are."""
    output, names = list(tokens), _type_names(tokens)
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
