"""The scanner: Metal source text to tokens that know where they stand in the user's source."""

from __future__ import annotations

from typing import NamedTuple

from ..errors import source_error

IDENTIFIER, NUMBER, STRING, CHARACTER, PUNCTUATOR = range(5)

NOTHING_HIDDEN: frozenset[str] = frozenset()
_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_")
_DIGITS = frozenset("0123456789")
_WORD = _LETTERS | _DIGITS
_NUMBER = _WORD | {".", "'"}
_SPACE = frozenset(" \t\v\f\r")
# ">>" is left out on purpose: two ">" close two template argument lists, and adjacency keeps a
# shift a shift.
_LONG_PUNCTUATORS = frozenset(
    "... <<= ->* <=> :: ++ -- += -= *= /= %= &= |= ^= == != <= >= && || -> << ## .*".split()
)
_SHORT_PUNCTUATORS = frozenset("{}[]()<>;:,.?~!+-*/%&|^=#")


class Token(NamedTuple):
    """One preprocessing token. `line` and `column` count from 1; `source` is the name that errors
    show."""

    kind: int
    text: str
    line: int
    column: int
    source: str
    spaced: bool = True
    hidden: frozenset[str] = NOTHING_HIDDEN
    """The macros this token came out of: they are not expanded in it again."""


class Scanner:
    """Reads one file line by line, so that a `#line` directive can change the position of what
    follows."""

    def __init__(self, text: str, source: str) -> None:
        self.source = source
        self.line_shift = 0
        """Added to a line of the file to give the line that errors show."""
        self.physical_line = 1
        text = text.replace("\r\n", "\n")
        _require_ascii(text, source)
        self._text = text + "\n\0"
        self._at = 0
        self._line_start = 0

    def next_line(self) -> list[Token] | None:
        """Tokens of the next logical line (after joining lines that end in a backslash); None at
        the end."""
        text, at = self._text, self._at
        source, tokens, spaced = self.source, list[Token](), True
        if text[at] == "\0":
            return None
        while True:
            character = text[at]
            start = at
            if character in _SPACE:
                at += 1
                spaced = True
                continue
            if character == "\n":
                break
            if character in _LETTERS:
                at += 1
                while text[at] in _WORD:
                    at += 1
                kind = IDENTIFIER
            elif character == "/" and text[at + 1] in "/*":
                at = self._skip_comment(at)
                spaced = True
                continue
            elif character == "\\" and text[at + 1] == "\n":
                at = self._join_lines(at)
                spaced = True
                continue
            else:
                kind, at = self._other_token(character, at)
            line = self.physical_line + self.line_shift
            column = start - self._line_start + 1
            tokens.append(Token(kind, text[start:at], line, column, source, spaced))
            spaced = False
        self._at = self._line_start = at + 1
        self.physical_line += 1
        return tokens

    def _other_token(self, character: str, at: int) -> tuple[int, int]:
        text = self._text
        if character in _DIGITS or (character == "." and text[at + 1] in _DIGITS):
            return NUMBER, self._end_of_number(at)
        if character in "\"'":
            return STRING if character == '"' else CHARACTER, self._end_of_quoted(at)
        if text[at : at + 3] in _LONG_PUNCTUATORS:
            return PUNCTUATOR, at + 3
        if text[at : at + 2] in _LONG_PUNCTUATORS:
            return PUNCTUATOR, at + 2
        if character not in _SHORT_PUNCTUATORS:
            raise self._error(at, f"unexpected character {character!r}")
        return PUNCTUATOR, at + 1

    def _end_of_number(self, at: int) -> int:
        text = self._text
        hexadecimal = text[at : at + 2] in ("0x", "0X")
        exponent = "pP" if hexadecimal else "eE"
        while text[at] in _NUMBER or (text[at] in "+-" and text[at - 1] in exponent):
            at += 1
        return at

    def _end_of_quoted(self, at: int) -> int:
        text, quote, start = self._text, self._text[at], at
        at += 1
        while text[at] != quote:
            if text[at] == "\n":
                raise self._error(start, f"missing terminating {quote} character")
            if text[at] == "\\" and text[at + 1] == "\n":
                raise self._error(at, "a line continuation inside a literal is not supported")
            at += 2 if text[at] == "\\" else 1
        return at + 1

    def _skip_comment(self, at: int) -> int:
        text = self._text
        if text[at + 1] == "/":
            end = text.index("\n", at)
            while text[end - 1] == "\\":
                self._join_lines(end - 1)
                end = text.index("\n", end + 1)
            return end
        end = text.find("*/", at + 2)
        if end < 0:
            raise self._error(at, "unterminated /* comment")
        newlines = text.count("\n", at, end)
        if newlines:
            self.physical_line += newlines
            self._line_start = text.rindex("\n", at, end) + 1
        return end + 2

    def _join_lines(self, at: int) -> int:
        text = self._text
        if text[at - 1] in _WORD and text[at + 2] in _WORD:
            raise self._error(at, "a line continuation inside a word is not supported")
        self.physical_line += 1
        self._line_start = at + 2
        return at + 2

    def _error(self, at: int, message: str) -> SyntaxError:
        line = self.physical_line + self.line_shift
        return source_error(self.source, line, at - self._line_start + 1, message)


def _require_ascii(text: str, source: str) -> None:
    if text.isascii():
        if "\0" in text:
            raise _character_error(text, text.index("\0"), source, "a null character")
        return
    at = next(index for index, character in enumerate(text) if not character.isascii())
    raise _character_error(text, at, source, f"character U+{ord(text[at]):04X}, which is not ASCII")


def _character_error(text: str, at: int, source: str, what: str) -> SyntaxError:
    line = text.count("\n", 0, at) + 1
    column = at - (text.rfind("\n", 0, at) + 1) + 1
    return source_error(source, line, column, f"{what}: torch.mps.compile_shader takes ASCII alone")


def tokenize(text: str, source: str = "program_source") -> list[Token]:
    """All tokens of `text`, comments left out, directives not treated."""
    scanner, tokens = Scanner(text, source), list[Token]()
    while (line := scanner.next_line()) is not None:
        tokens += line
    return tokens


def error_at(token: Token, message: str) -> SyntaxError:
    """A SyntaxError at `token`, worded as Metal's compiler words its own."""
    return source_error(token.source, token.line, token.column, message)


def spell(tokens: list[Token]) -> str:
    """Source text of `tokens` on one line, with one space where the source had white space."""
    parts = [
        (" " if token.spaced and index else "") + token.text for index, token in enumerate(tokens)
    ]
    return "".join(parts)
