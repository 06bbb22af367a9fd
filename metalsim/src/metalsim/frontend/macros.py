"""Macro definition and expansion, by the standard's hide-set algorithm (Prosser 1986).

A token of a macro's body takes the place of the macro's name in the user's source; a token of an
argument keeps its own place. Errors therefore point at what the user wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .tokens import (
    CHARACTER,
    IDENTIFIER,
    NUMBER,
    PUNCTUATOR,
    STRING,
    Token,
    error_at,
    spell,
    tokenize,
)

MoreTokens = Callable[[], "list[Token] | None"]


class Macro(NamedTuple):
    """One `#define`. `parameters` is None for a macro without a parameter list."""

    parameters: tuple[str, ...] | None
    variadic: bool
    body: tuple[Token, ...]


def predefined_macros(metal_version: int) -> dict[str, Macro]:
    """What Metal's compiler defines by itself, and `__METALSIM__`."""
    values = {
        "__METAL__": "1",
        "__METAL_VERSION__": str(metal_version),
        "__METAL_MACOS__": "1",
        "__METALSIM__": "1",
        "__cplusplus": "201402L",
    }
    if metal_version >= 310:
        values["__HAVE_BFLOAT__"] = "1"
    if metal_version >= 400:
        values["__HAVE_TENSOR__"] = "1"
    return {name: Macro(None, False, tuple(tokenize(value))) for name, value in values.items()}


def parse_definition(tokens: list[Token]) -> tuple[str, Macro]:
    """The macro that the tokens after `#define` describe."""
    name = tokens[0]
    if len(tokens) < 2 or tokens[1].text != "(" or tokens[1].spaced:
        return name.text, Macro(None, False, tuple(tokens[1:]))
    parameters, variadic, at = list[str](), False, 2
    while at < len(tokens) and tokens[at].text != ")":
        token = tokens[at]
        if token.text == "...":
            variadic = True
            parameters.append("__VA_ARGS__")
        elif token.kind == IDENTIFIER and not variadic:
            parameters.append(token.text)
        elif token.text != ",":
            raise error_at(token, "expected a parameter name in the macro's parameter list")
        at += 1
    if at == len(tokens):
        raise error_at(name, "missing ')' in the macro's parameter list")
    body = tokens[at + 1 :]
    return name.text, Macro(tuple(parameters), variadic, tuple(body))


class Expander:
    """Expands macros in a token stream; `macros` may change between two calls."""

    def __init__(self, macros: dict[str, Macro]) -> None:
        self.macros = macros
        self._counter = 0

    def expand(self, tokens: list[Token], more: MoreTokens | None = None) -> list[Token]:
        """`tokens` with every macro expanded. `more` gives the next line where an argument list
        runs on."""
        macros = self.macros
        output, stack = list[Token](), tokens[::-1]
        while stack:
            token = stack.pop()
            text = token.text
            if token.kind != IDENTIFIER or text in token.hidden:
                output.append(token)
            elif text in macros:
                replacement = self._replace(token, stack, more)
                if replacement is None:
                    output.append(token)
                else:
                    stack.extend(reversed(replacement))
            elif text in _COMPUTED:
                output.append(self._computed(token))
            else:
                output.append(token)
        return output

    def concerns(self, tokens: list[Token]) -> bool:
        """Whether macros or `_Pragma` could change `tokens` (most lines: no)."""
        macros = self.macros
        return any(token.text in macros or token.text in _WATCHED for token in tokens)

    def _computed(self, token: Token) -> Token:
        if token.text == "__FILE__":
            return token._replace(kind=STRING, text=f'"{token.source}"')
        if token.text == "__LINE__":
            return token._replace(kind=NUMBER, text=str(token.line))
        self._counter += 1
        return token._replace(kind=NUMBER, text=str(self._counter - 1))

    def _replace(
        self, name: Token, stack: list[Token], more: MoreTokens | None
    ) -> list[Token] | None:
        macro = self.macros[name.text]
        if macro.parameters is None:
            return self._substitute(name, macro, {}, name.hidden | {name.text})
        while not stack and more is not None:
            line = more()
            if line is None:
                break
            stack.extend(reversed(line))
        if not stack or stack[-1].text != "(":
            return None
        arguments, close = _collect_arguments(name, stack, more)
        hidden = (name.hidden & close.hidden) | {name.text}
        return self._substitute(name, macro, _bind(name, macro, arguments), hidden)

    def _substitute(
        self, name: Token, macro: Macro, arguments: dict[str, list[Token]], hidden: frozenset[str]
    ) -> list[Token]:
        body, output, at = list(_resolve_va_opt(macro, arguments)), list[Token](), 0
        while at < len(body):
            token = body[at]
            following = body[at + 1].text if at + 1 < len(body) else ""
            if token.text == "#" and macro.parameters is not None and following in arguments:
                output.append(_stringified(name, token, arguments[following]))
                at += 2
            elif token.text == "##" and output and following:
                right = arguments.get(following)
                pasted = [body[at + 1]] if right is None else right
                _paste(name, output, pasted, comma_rule=following == "__VA_ARGS__")
                at += 2
            elif token.text in arguments:
                argument = arguments[token.text]
                if following == "##":
                    # An empty left operand pastes as nothing: a placemarker keeps its place.
                    output += argument or [_placed(name, token._replace(kind=PUNCTUATOR, text=""))]
                else:
                    expanded = self.expand(list(argument))
                    output += _spaced_like(token, expanded)
                at += 1
            else:
                output.append(_placed(name, token))
                at += 1
        result = [token._replace(hidden=token.hidden | hidden) for token in output if token.text]
        return _spaced_like(name, result)


_COMPUTED = frozenset({"__LINE__", "__FILE__", "__COUNTER__"})
_WATCHED = _COMPUTED | {"_Pragma"}


def _placed(name: Token, token: Token) -> Token:
    return token._replace(line=name.line, column=name.column, source=name.source)


def _spaced_like(replaced: Token, tokens: list[Token]) -> list[Token]:
    if tokens and tokens[0].spaced != replaced.spaced:
        tokens[0] = tokens[0]._replace(spaced=replaced.spaced)
    return tokens


def _collect_arguments(
    name: Token, stack: list[Token], more: MoreTokens | None
) -> tuple[list[list[Token]], Token]:
    stack.pop()
    arguments: list[list[Token]] = [[]]
    depth = 1
    while True:
        while not stack:
            line = more() if more is not None else None
            if line is None:
                raise error_at(name, f"unterminated argument list of macro '{name.text}'")
            stack.extend(reversed(line))
        token = stack.pop()
        if token.text == "(":
            depth += 1
        elif token.text == ")":
            depth -= 1
            if depth == 0:
                return arguments, token
        if token.text == "," and depth == 1:
            arguments.append([])
        else:
            arguments[-1].append(token)


def _bind(name: Token, macro: Macro, arguments: list[list[Token]]) -> dict[str, list[Token]]:
    parameters = macro.parameters or ()
    if not parameters and arguments == [[]]:
        return {}
    if macro.variadic:
        fixed = len(parameters) - 1
        rest = list[Token]()
        for index, argument in enumerate(arguments[fixed:]):
            if index:
                rest.append(Token(PUNCTUATOR, ",", name.line, name.column, name.source, False))
            rest += argument
        if len(arguments) >= fixed:
            return dict(zip(parameters, [*arguments[:fixed], rest], strict=True))
    elif len(arguments) == len(parameters):
        return dict(zip(parameters, arguments, strict=True))
    expected = f"{len(parameters) - 1} or more" if macro.variadic else str(len(parameters))
    raise error_at(name, f"macro '{name.text}' takes {expected} arguments, {len(arguments)} given")


def _resolve_va_opt(macro: Macro, arguments: dict[str, list[Token]]) -> tuple[Token, ...]:
    body = macro.body
    if not macro.variadic or all(token.text != "__VA_OPT__" for token in body):
        return body
    output, at = list[Token](), 0
    while at < len(body):
        if body[at].text != "__VA_OPT__" or at + 1 == len(body) or body[at + 1].text != "(":
            output.append(body[at])
            at += 1
            continue
        depth, end = 1, at + 2
        while end < len(body) and depth:
            depth += {"(": 1, ")": -1}.get(body[end].text, 0)
            end += 1
        if arguments["__VA_ARGS__"]:
            output += body[at + 2 : end - 1]
        at = end
    return tuple(output)


def _stringified(name: Token, mark: Token, argument: list[Token]) -> Token:
    spelled = spell(
        [
            token._replace(text=token.text.replace("\\", "\\\\").replace('"', '\\"'))
            if token.kind in (STRING, CHARACTER)
            else token
            for token in argument
        ]
    )
    return _placed(name, mark._replace(kind=STRING, text=f'"{spelled}"'))


def _paste(name: Token, output: list[Token], right: list[Token], comma_rule: bool) -> None:
    if not right:
        if comma_rule and output[-1].text == ",":
            output.pop()
        return
    if comma_rule and output[-1].text == ",":
        output += right
        return
    left = output.pop()
    text = left.text + right[0].text
    pasted = tokenize(text, name.source)
    if len(pasted) != 1:
        raise error_at(name, f"pasting {left.text!r} and {right[0].text!r} does not give one token")
    output.append(left._replace(kind=pasted[0].kind, text=text, line=name.line, column=name.column))
    output += right[1:]
