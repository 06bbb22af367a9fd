"""The program cut at `;`, `{` and `}`, each piece with the kind of scope it stands in."""

from __future__ import annotations

from typing import NamedTuple

from ..frontend.function_constants import FunctionConstants
from ..frontend.kernels import parameter_list
from ..frontend.rewriter import Rewriter, Scope
from ..frontend.syntax import ADDRESS_SPACES, closing, closing_angle
from ..frontend.tokens import IDENTIFIER, Token
from .words import REFUSED

_NO_METHOD = frozenset({"static", "friend", "using", "typedef", "struct", "class", "enum", "union"})
_SPECIFIERS = frozenset({"constexpr", "explicit", "inline", "METAL_FUNC"})


class Segment(NamedTuple):
    """Tokens up to a `;` or `{`, without it."""

    tokens: list[Token]
    scope: str
    """"namespace", "type", "function", "kernel" or "data", as the rewriter says."""

    @property
    def is_whole(self) -> bool:
        """Whether all brackets are closed: a list in braces cuts what is around it."""
        words = [token.text for token in self.tokens]
        return all(words.count(a) == words.count(b) for a, b in ("()", "[]"))


class Recorder(Rewriter):
    """The rewriter, which notes the segments as they were written.

    With `is_thread_implied`, member functions without an address space are in `thread`, as before
    Metal 4.1.
    """

    def __init__(
        self, tokens: list[Token], constants: FunctionConstants, *, is_thread_implied: bool
    ) -> None:
        super().__init__(tokens, constants)
        self.segments: list[Segment] = []
        self.refused: list[SyntaxError] = []
        """What the front end refused; the program is looked at further, and `output` of no use."""
        self._is_thread_implied = is_thread_implied

    def _open(self, head: list[Token], brace: Token, depth: int) -> None:
        noted = self._noted(head, depth)
        try:
            super()._open(noted, brace, depth)
        except SyntaxError as error:
            self.refused.append(error)
            self._goes_on = False
            self._scopes.append(Scope(_kind(head, self._scopes[-1].kind), (), depth))

    def _statement(self, statement: list[Token], end: Token) -> None:
        noted = self._noted(statement)
        if self._scopes[-1].kind == "namespace" and _is_defined_before(statement):
            return
        derived = None
        if self._scopes[-1].kind == "namespace" and not self._goes_on:
            derived = self._constants.derive(statement)
        if derived is not None:
            self.output += derived
            return
        try:
            super()._statement(noted, end)
        except SyntaxError as error:
            self.refused.append(error)

    def _declare_arrays(
        self, statement: list[Token], initialized: bool
    ) -> tuple[Token, ...] | None:
        return None  # they stay as they were written

    def _refuse_word(self, token: Token, before: Token | None) -> None:
        if token.text not in REFUSED:  # which check_words finds, every one of them
            super()._refuse_word(token, before)

    def _noted(self, tokens: list[Token], depth: int = 0) -> list[Token]:
        # What is between lists in braces declares nothing.
        is_rest = self._scopes[-1].kind in ("namespace", "type") and (depth or self._goes_on)
        segment = Segment(tokens, "data" if is_rest else self._scopes[-1].kind)
        if not segment.is_whole:
            return tokens
        self.segments.append(segment)
        if segment.scope != "type":
            return tokens
        return _in_thread(tokens, self._is_thread_implied)


def _is_defined_before(statement: list[Token]) -> bool:
    """Whether this is the definition that a constexpr member had in its class, once more, which
    clang refuses in OpenCL."""
    words = [token.text for token in statement]
    return {"constexpr", "::"} <= set(words) and not {"=", "(", "{", "using"} & set(words)


def _kind(head: list[Token], around: str) -> str:
    """What a brace opens behind a `head` that the rewriter refused."""
    if any(token.text == "kernel" for token in head):
        return "kernel"
    if around != "namespace":
        return around
    return "data" if parameter_list(head) is None else "function"


def without_templates(tokens: list[Token]) -> list[Token]:
    """A declaration without the `template <...>` in front."""
    while tokens and tokens[0].text == "template":
        end = closing_angle(tokens, 1) if tokens[1:] and tokens[1].text == "<" else None
        if end is None:
            break
        tokens = tokens[end + 1 :]
    return tokens


def parameters_of(tokens: list[Token]) -> int | None:
    """Index of the '(' of a declared function's parameters, also of `operator()`; None for other
    declarations."""
    opening = parameter_list(tokens)
    if opening is None or not opening:
        return None
    if tokens[opening - 1].text == "operator":
        opening = closing(tokens, opening) + 1
        return opening if opening < len(tokens) and tokens[opening].text == "(" else None
    words = [token.text for token in tokens[:opening]]
    return None if "=" in words and "operator" not in words else opening


def _in_thread(tokens: list[Token], is_implied: bool) -> list[Token]:
    """A member's declaration, with `thread` behind the parameters of a function that names no
    address space if that is implied, and without it behind a constructor's."""
    start = len(tokens) - len(without_templates(tokens))
    opening = parameters_of(tokens[start:])
    if opening is None:
        return tokens
    opening += start
    words = [token.text for token in tokens[start:opening] if token.text not in _SPECIFIERS]
    if _NO_METHOD & set(words):
        return tokens
    end = closing(tokens, opening) + 1
    while end < len(tokens) and tokens[end].text in ("const", "volatile"):
        end += 1
    is_written = end < len(tokens) and tokens[end].text in ADDRESS_SPACES
    if len(words) == 1 or words[-2:-1] == ["~"]:
        # clang makes temporaries by constructors without an address space alone.
        is_in_thread = is_written and tokens[end].text == "thread"
        return [*tokens[:end], *tokens[end + 1 :]] if is_in_thread else tokens
    if is_written or not is_implied:
        return tokens
    word = tokens[opening]._replace(kind=IDENTIFIER, text="thread", spaced=True)
    return [*tokens[:end], word, *tokens[end:]]
