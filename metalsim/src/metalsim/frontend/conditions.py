"""Integer expressions of `#if`, after macro expansion."""

from __future__ import annotations

from collections.abc import Callable

from .tokens import CHARACTER, IDENTIFIER, NUMBER, Token, error_at

_BINARY: dict[str, tuple[int, Callable[[int, int], int]]] = {
    "||": (1, lambda a, b: int(bool(a) or bool(b))),
    "&&": (2, lambda a, b: int(bool(a) and bool(b))),
    "|": (3, lambda a, b: a | b),
    "^": (4, lambda a, b: a ^ b),
    "&": (5, lambda a, b: a & b),
    "==": (6, lambda a, b: int(a == b)),
    "!=": (6, lambda a, b: int(a != b)),
    "<": (7, lambda a, b: int(a < b)),
    ">": (7, lambda a, b: int(a > b)),
    "<=": (7, lambda a, b: int(a <= b)),
    ">=": (7, lambda a, b: int(a >= b)),
    "<<": (8, lambda a, b: a << b),
    ">>": (8, lambda a, b: a >> b),
    "+": (9, lambda a, b: a + b),
    "-": (9, lambda a, b: a - b),
    "*": (10, lambda a, b: a * b),
    "/": (10, lambda a, b: _divide(a, b)),
    "%": (10, lambda a, b: a - b * _divide(a, b)),
}
_TERNARY = 0


class Condition:
    """Evaluates one expression; `where` is the directive, for errors about an expression that ends
    early."""

    def __init__(self, tokens: list[Token], where: Token) -> None:
        self._tokens = tokens
        self._where = where
        self._at = 0
        self._unevaluated = 0
        """How many operators around the current place leave this operand out: `0 && here`."""

    def value(self) -> int:
        """The expression's value; SyntaxError naming the token that does not fit."""
        result = self._expression(_TERNARY)
        if self._at < len(self._tokens):
            raise error_at(self._tokens[self._at], "unexpected token in a preprocessor expression")
        return result

    def _peek(self) -> str:
        return self._tokens[self._at].text if self._at < len(self._tokens) else ""

    def _operator(self) -> str:
        text = self._peek()
        following = self._tokens[self._at + 1] if self._at + 1 < len(self._tokens) else None
        if text == ">" and following is not None and following.text == ">" and not following.spaced:
            return ">>"
        return text

    def _expression(self, floor: int) -> int:
        left = self._unary()
        while True:
            operator = self._operator()
            if operator == "?" and floor == _TERNARY:
                self._at += 1
                chosen = self._operand(_TERNARY, needed=bool(left))
                self._expect(":")
                other = self._operand(_TERNARY, needed=not left)
                return chosen if left else other
            if operator not in _BINARY or _BINARY[operator][0] <= floor:
                return left
            precedence, apply = _BINARY[operator]
            place = self._tokens[self._at]
            self._at += 2 if operator == ">>" else 1
            decided = (operator == "&&" and not left) or (operator == "||" and bool(left))
            right = self._operand(precedence, needed=not decided)
            if self._unevaluated:
                continue
            try:
                left = apply(left, right)
            except (ZeroDivisionError, ValueError):
                raise error_at(
                    place, f"'{operator}' by {right} in a preprocessor expression"
                ) from None

    def _operand(self, floor: int, *, needed: bool) -> int:
        """The expression that follows; one that is not needed may divide by zero."""
        self._unevaluated += not needed
        result = self._expression(floor)
        self._unevaluated -= not needed
        return result

    def _unary(self) -> int:
        if self._at == len(self._tokens):
            raise error_at(self._where, "expected a value in the preprocessor expression")
        token = self._tokens[self._at]
        self._at += 1
        if token.text == "(":
            result = self._expression(_TERNARY)
            self._expect(")")
            return result
        if token.text in _UNARY:
            return _UNARY[token.text](self._unary())
        if token.kind == NUMBER:
            return _integer(token)
        if token.kind == CHARACTER and len(token.text) == 3:
            return ord(token.text[1])
        if token.kind == IDENTIFIER:
            return int(token.text == "true")
        raise error_at(token, "unexpected token in a preprocessor expression")

    def _expect(self, text: str) -> None:
        if self._peek() != text:
            place = self._tokens[self._at] if self._at < len(self._tokens) else self._where
            raise error_at(place, f"expected '{text}' in the preprocessor expression")
        self._at += 1


_UNARY: dict[str, Callable[[int], int]] = {
    "!": lambda a: int(not a),
    "-": lambda a: -a,
    "+": lambda a: a,
    "~": lambda a: ~a,
}


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


def _integer(token: Token) -> int:
    digits = token.text.rstrip("uUlL").replace("'", "")
    try:
        if len(digits) > 1 and digits[0] == "0" and digits[1] in "01234567":
            return int(digits, 8)
        return int(digits, 0)
    except ValueError:
        raise error_at(token, f"{token.text!r} is not an integer") from None
