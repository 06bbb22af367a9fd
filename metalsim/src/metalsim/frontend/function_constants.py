"""Function constants, baked into the program when it is compiled."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .conditions import Condition
from .program import FunctionConstant
from .syntax import split_attributes
from .tokens import IDENTIFIER, NUMBER, PUNCTUATOR, Token, error_at, spell

_QUALIFIERS = frozenset({"constant", "const", "constexpr", "static"})


class FunctionConstants:
    """The values given by the caller, by name or index, and the constants that the program
    declares. Where none is `needed`, a constant without a value is zero."""

    def __init__(self, given: Mapping[str | int, FunctionConstant], *, needed: bool = True) -> None:
        self._given = dict(given)
        self._needed = needed
        self._used: set[str | int] = set()
        self._missing: dict[str, Token] = {}
        self._known: dict[str, bool] = {}

    def declare(self, statement: list[Token]) -> list[Token]:
        """`constant T x [[function_constant(n)]]` as a C++ constant, its ';' included."""
        rest, attributes = split_attributes(statement)
        index = next(attribute for attribute in attributes if attribute.name == "function_constant")
        name = rest[-1]
        type_tokens = [token for token in rest[:-1] if token.text not in _QUALIFIERS]
        is_constant = any(token.text == "constant" for token in rest)
        if name.kind != IDENTIFIER or not is_constant or not type_tokens:
            raise error_at(rest[0], "expected: constant type name [[function_constant(index)]]")
        number = Condition(index.arguments, index.where).value()
        key = name.text if name.text in self._given else number
        is_given = key in self._given
        self._known[name.text] = is_given
        if is_given:
            self._used.add(key)
            value = _spelled(spell(type_tokens), self._given[key], name)
        elif not self._needed:
            return self.unknown([*type_tokens, name])
        else:
            self._missing[name.text] = name
            value = "{}"
        before = ((IDENTIFIER, "METALSIM_CONSTANT"), (IDENTIFIER, "constexpr"))
        after = ((PUNCTUATOR, "="), (NUMBER, value), (PUNCTUATOR, ";"))
        return [
            *(rest[0]._replace(kind=kind, text=text) for kind, text in before),
            *type_tokens,
            name,
            *(name._replace(kind=kind, text=text) for kind, text in after),
        ]

    def unknown(self, declaration: list[Token]) -> list[Token]:
        """The constant of type and name `declaration` as one whose value no compiler knows, ';'
        included."""
        first, name = declaration[0], declaration[-1]
        self._known.setdefault(name.text, False)
        words = ((IDENTIFIER, "extern"), (IDENTIFIER, "METALSIM_CONSTANT"))
        return [
            *(first._replace(kind=kind, text=text) for kind, text in words),
            *declaration,
            name._replace(kind=PUNCTUATOR, text=";"),
        ]

    def derive(self, statement: list[Token]) -> list[Token] | None:
        """`constant T y = x + 1` where x is such a constant; None for all else."""
        words = [token.text for token in statement]
        if "constant" not in words or "=" not in words:
            return None
        end = words.index("=")
        if statement[end - 1].kind != IDENTIFIER or not self._known.keys() & set(words[end:]):
            return None
        return self.unknown([token for token in statement[:end] if token.text not in _QUALIFIERS])

    def query(self, tokens: list[Token], at: int) -> tuple[Token, int]:
        """`is_function_constant_defined(x)` as true or false, and the index of its last token."""
        words = [token.text for token in tokens[at + 1 : at + 4]]
        if len(words) < 3 or words[0] != "(" or words[2] != ")" or words[1] not in self._known:
            raise error_at(
                tokens[at], "is_function_constant_defined needs the name of a function constant"
            )
        self._missing.pop(words[1], None)
        return tokens[at]._replace(text="true" if self._known[words[1]] else "false"), at + 3

    def check(self) -> None:
        """ValueError for a value nobody asked for, SyntaxError for a constant without a value."""
        unknown = [key for key in self._given if key not in self._used]
        if unknown:
            known = ", ".join(self._known) or "none"
            raise ValueError(
                f"compile_shader: function_constants has {unknown[0]!r}, but the source declares "
                f"{known}"
            )
        for name, where in self._missing.items() if self._needed else ():
            raise error_at(
                where,
                f"function constant '{name}' has no value: give it in function_constants, "
                "or ask is_function_constant_defined first",
            )


def _spelled(type_name: str, value: FunctionConstant, where: Token) -> str:
    if isinstance(value, tuple):
        return f"{type_name}({', '.join(_scalar(item, where) for item in value)})"
    return f"static_cast<{type_name}>({_scalar(value, where)})"


def _scalar(value: float, where: Token) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if not math.isfinite(value):
        raise error_at(where, f"function constant '{where.text}' must be finite, not {value}")
    return f"{value!r}f"
