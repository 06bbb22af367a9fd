"""Declarations of threadgroup variables: one macro a variable, its whole type in one piece."""

from __future__ import annotations

from .conditions import Condition
from .syntax import TYPE_WORDS, closing, is_attribute, read_attributes, skip_type_name, split_commas
from .tokens import IDENTIFIER, NUMBER, PUNCTUATOR, Token, error_at

_ALIGNMENT = 16
"""The machine aligns every threadgroup variable to this many bytes."""


def rewrite_threadgroup_variables(
    statement: list[Token], kernel: str, first: int
) -> tuple[list[Token], int] | None:
    """The declarations for `threadgroup T a[n], b;` in a kernel whose address is `kernel` (numbered
    from `first`) and how many; None for other statements.

    What stands in front of an initializer's brace ends in `=`: Apple's compiler takes one, and here
    it initializes a constant of its own.
    """
    at, pragmas = _skip_pragmas(statement), list[Token]()
    pragmas, statement = statement[:at], statement[at:]
    found = _read_specifiers(statement)
    if found is None:
        return None
    type_tokens, where, at = found
    output, count = pragmas, 0
    is_initialized = statement[-1].text == "="
    for declarator in split_commas(statement[at : len(statement) - is_initialized]):
        name = declarator[0] if declarator else where
        if name.kind != IDENTIFIER:
            raise error_at(name, "expected the name of a threadgroup variable")
        dimensions = _read_dimensions(declarator)
        if count:
            output.append(name._replace(kind=PUNCTUATOR, text=";"))
        macro = where if not count else name
        output += [
            macro._replace(kind=IDENTIFIER, text="METALSIM_THREADGROUP_VARIABLE"),
            macro._replace(kind=PUNCTUATOR, text="("),
            macro._replace(kind=IDENTIFIER, text=kernel),
            macro._replace(kind=PUNCTUATOR, text=","),
            macro._replace(kind=NUMBER, text=str(first + count)),
            macro._replace(kind=PUNCTUATOR, text=","),
            name,
            name._replace(kind=PUNCTUATOR, text=","),
            *type_tokens,
            *dimensions,
            name._replace(kind=PUNCTUATOR, text=")"),
        ]
        count += 1
        if is_initialized and declarator[-1] is statement[-2]:
            output += _constant_of(name, type_tokens, dimensions)
    return output, count


def _constant_of(name: Token, type_tokens: list[Token], dimensions: list[Token]) -> list[Token]:
    qualified = [token for token in type_tokens if token.text != "const"]
    return [
        name._replace(kind=PUNCTUATOR, text=";"),
        name._replace(kind=IDENTIFIER, text="const"),
        *qualified,
        name._replace(text=f"metalsim_initializer_of_{name.text}"),
        *dimensions,
        name._replace(kind=PUNCTUATOR, text="="),
    ]


def _skip_pragmas(statement: list[Token]) -> int:
    at = 0
    while at < len(statement) and statement[at].text == "_Pragma":
        at = closing(statement, at + 1) + 1
    return at


def _read_specifiers(statement: list[Token]) -> tuple[list[Token], Token, int] | None:
    """The type, the word `threadgroup` and the index of the first declarator; None if no variable
    is declared."""
    type_tokens, where, has_type, at = list[Token](), None, False, 0
    while at < len(statement):
        token = statement[at]
        if token.text == "threadgroup":
            where = token
        elif token.text in ("const", "volatile", "typename", "struct"):
            type_tokens.append(token)
        elif token.text == "alignas":
            end = closing(statement, at + 1)
            _check_alignment(token, statement[at + 2 : end])
            at = end
        elif is_attribute(statement, at):
            at = read_attributes(statement, at)[1] - 1
        elif token.kind == IDENTIFIER and (not has_type or _goes_on(type_tokens, token)):
            end = skip_type_name(statement, at)
            type_tokens += statement[at:end]
            has_type, at = True, end - 1
        else:
            break
        at += 1
    is_variable = has_type and at < len(statement) and statement[at].kind == IDENTIFIER
    return (type_tokens, where, at) if is_variable and where is not None else None


def _goes_on(type_tokens: list[Token], token: Token) -> bool:
    """`int` after `unsigned` and the like."""
    return token.text in TYPE_WORDS and type_tokens[-1].text in TYPE_WORDS


def _check_alignment(where: Token, tokens: list[Token]) -> None:
    if (
        any(token.kind == IDENTIFIER for token in tokens)
        or Condition(tokens, where).value() > _ALIGNMENT
    ):
        raise error_at(
            where, f"alignas of a threadgroup variable must be a number up to {_ALIGNMENT}"
        )


def _read_dimensions(declarator: list[Token]) -> list[Token]:
    name, at = declarator[0], 1
    while at < len(declarator):
        if is_attribute(declarator, at):
            where = read_attributes(declarator, at)[0][0].where
            raise error_at(where, f"metalsim does not support the attribute '{where.text}' here")
        if declarator[at].text != "[":
            if declarator[at].text == "=":
                raise error_at(
                    declarator[at], f"threadgroup variable '{name.text}' cannot have an initializer"
                )
            raise error_at(
                declarator[at], "unexpected token in the declaration of a threadgroup variable"
            )
        at = closing(declarator, at) + 1
    return declarator[1:]
