"""Directives: includes flattened, conditionals decided, macros expanded; every token keeps its
place in the source."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import PROGRAM_SOURCE
from .conditions import Condition
from .macros import Expander, parse_definition, predefined_macros
from .tokens import (
    IDENTIFIER,
    NUMBER,
    PUNCTUATOR,
    STRING,
    Scanner,
    Token,
    error_at,
    spell,
    tokenize,
)

METAL_VERSION = 400
"""The language that metalsim runs, as `__METAL_VERSION__` counts: 400 is 4.0."""
_DEPTH_LIMIT = 100
_UNSUPPORTED_HEADERS = ("metal_raytracing",)
_TENSOR_HEADERS = {
    "metal_tensor": "metalsim/cooperative_tensor.h",
    "metal_cooperative_tensor": "metalsim/cooperative_tensor.h",
    "MetalPerformancePrimitives/MetalPerformancePrimitives.h": "metalsim/tensor_operations.h",
    "MetalPerformancePrimitives/MPPTensorOpsMatMul2d.h": "metalsim/tensor_operations.h",
}
"""What every other program does without: these headers are long."""
_TENSOR_VERSION = 400
_INTERNALS = "metalsim/internals.h"
_DROPPED_PRAGMAS = frozenset({"mark", "region", "endregion", "message"})


class SourceSegment(NamedTuple):
    """From physical line `first` of file `file` on, errors show `source` and line + `shift`."""

    file: int
    first: int
    source: str
    shift: int


class Preprocessed(NamedTuple):
    """The whole program as one list of tokens, and what is needed to quote its lines."""

    tokens: list[Token]
    files: list[list[str]]
    segments: list[SourceSegment]
    included: bool
    """Whether a file besides Metal's own headers was read."""
    headers: frozenset[str] = frozenset()
    """metalsim's headers that the program needs besides shim.h."""

    def line_text(self, source: str, line: int) -> str | None:
        """The line that errors call `source:line`, None where there is no such line."""
        for segment in reversed(self.segments):
            lines, physical = self.files[segment.file], line - segment.shift
            if segment.source == source and segment.first <= physical <= len(lines):
                return lines[physical - 1]
        return None


class Preprocessor:
    """One run over one program, written for `metal_version`.

    `include_dirs`, then `system_dirs`, are searched for angle and quoted includes alike. Files of
    `system_dirs` come with torch, whose comments are not all ASCII.
    """

    def __init__(
        self,
        include_dirs: Sequence[Path] = (),
        system_dirs: Sequence[Path] = (),
        metal_version: int = METAL_VERSION,
    ) -> None:
        self._metal_version = metal_version
        self._include_dirs = (*include_dirs, *system_dirs)
        self._system_dirs = tuple(directory.resolve() for directory in system_dirs)
        self._expander = Expander(predefined_macros(metal_version))
        self._macros = self._expander.macros
        self._output: list[Token] = []
        self._seen_once: set[Path] = set()
        self._directories: list[Path | None] = []
        self._headers: set[str] = set()
        self.files: list[list[str]] = []
        self.segments: list[SourceSegment] = []

    def run(self, text: str) -> Preprocessed:
        """Preprocess a program given as a string."""
        self._file(text, PROGRAM_SOURCE, None)
        if any(token.text.startswith("__metal_") for token in self._output):
            self._headers.add(_INTERNALS)
        included = len(self.files) > 1
        headers = frozenset(self._headers)
        return Preprocessed(self._output, self.files, self.segments, included, headers)

    def _file(self, text: str, source: str, path: Path | None) -> None:
        self.files.append(text.replace("\r\n", "\n").split("\n"))
        file = len(self.files) - 1
        self.segments.append(SourceSegment(file, 1, source, 0))
        self._directories.append(path.parent if path else None)
        _FileReader(self, Scanner(text, source), file, path).run()
        self._directories.pop()

    def emit(self, line: list[Token], reader: _FileReader) -> None:
        """Expand and keep one line of ordinary tokens."""
        if self._expander.concerns(line):
            line = self._expander.expand(line, reader.next_argument_line)
            if any(token.text == "_Pragma" for token in line):
                line = self._expand_pragma_operators(line)
        self._output += line

    def include(self, name: Token, tokens: list[Token]) -> None:
        """`#include`: Metal's headers are dropped, a file is read in place, the rest refused."""
        if tokens and tokens[0].kind == IDENTIFIER:
            tokens = self._expander.expand(tokens)
        target = _header_name(name, tokens)
        if _is_metal_header(target):
            if target.startswith(_UNSUPPORTED_HEADERS):
                raise error_at(tokens[0], f"metalsim does not support <{target}> yet")
            if target in _TENSOR_HEADERS:
                if self._metal_version < _TENSOR_VERSION:
                    raise error_at(tokens[0], f"<{target}> needs Metal 4.0")
                self._headers.add(_TENSOR_HEADERS[target])
            return
        path = self._find(target)
        if path is None:
            raise error_at(
                tokens[0], f"'{target}' file not found (give compile_shader its include_dirs)"
            )
        if len(self._directories) > _DEPTH_LIMIT:
            raise error_at(tokens[0], f"more than {_DEPTH_LIMIT} nested includes")
        if path not in self._seen_once:
            self._file(self._read(path), target, path)

    def _read(self, path: Path) -> str:
        text = path.read_text(encoding="utf-8", errors="replace")
        if any(directory in path.parents for directory in self._system_dirs):
            return text.encode("ascii", "replace").decode("ascii")
        return text

    def _find(self, target: str) -> Path | None:
        current = self._directories[-1]
        for directory in (*([current] if current else []), *self._include_dirs):
            candidate = directory / target
            if candidate.is_file():
                return candidate.resolve()
        return None

    def define(self, name: Token, tokens: list[Token]) -> None:
        """`#define`."""
        if not tokens or tokens[0].kind != IDENTIFIER:
            raise error_at(name, "macro name missing")
        key, macro = parse_definition(tokens)
        self._macros[key] = macro

    def undefine(self, name: Token, tokens: list[Token]) -> None:
        """`#undef`."""
        if not tokens or tokens[0].kind != IDENTIFIER:
            raise error_at(name, "macro name missing")
        self._macros.pop(tokens[0].text, None)

    def is_defined(self, name: Token, tokens: list[Token]) -> bool:
        """`#ifdef`."""
        if not tokens or tokens[0].kind != IDENTIFIER:
            raise error_at(name, "macro name missing")
        return tokens[0].text in self._macros

    def condition(self, name: Token, tokens: list[Token]) -> bool:
        """`#if` and `#elif`."""
        resolved = self._resolve_queries(name, tokens)
        return Condition(self._expander.expand(resolved), name).value() != 0

    def _resolve_queries(self, name: Token, tokens: list[Token]) -> list[Token]:
        output, at = list[Token](), 0
        while at < len(tokens):
            token = tokens[at]
            if token.text == "defined":
                bare = at + 1 < len(tokens) and tokens[at + 1].text != "("
                end = at + 2 if bare else _closing(name, tokens, at + 1) + 1
                known = tokens[at + (1 if bare else 2)].text in self._macros
            elif token.text == "__has_include":
                end = _closing(name, tokens, at + 1) + 1
                known = self._has_include(_header_name(token, tokens[at + 2 : end - 1]))
            elif token.text in _ABSENT_QUERIES and token.text not in self._macros:
                end = _closing(name, tokens, at + 1) + 1
                known = False
            else:
                output.append(token)
                at += 1
                continue
            output.append(token._replace(kind=NUMBER, text=str(int(known))))
            at = end
        return output

    def _has_include(self, target: str) -> bool:
        if _is_metal_header(target):
            is_absent = target in _TENSOR_HEADERS and self._metal_version < _TENSOR_VERSION
            return not is_absent and not target.startswith(_UNSUPPORTED_HEADERS)
        return self._find(target) is not None

    def pragma(self, name: Token, tokens: list[Token], path: Path | None) -> None:
        """`#pragma`: kept as a `_Pragma` operator where the C++ compiler has the same."""
        if tokens and tokens[0].text == "once":
            if path is not None:
                self._seen_once.add(path)
            return
        self._output += self._pragma_operator(name, tokens)

    def _pragma_operator(self, name: Token, tokens: list[Token]) -> list[Token]:
        if not tokens or tokens[0].text in _DROPPED_PRAGMAS:
            return []
        if tokens[0].text == "METAL":
            tokens = _metal_pragma(name, tokens)
            if not tokens:
                return []
        text = spell(self._expander.expand(tokens)).replace("\\", "\\\\").replace('"', '\\"')
        parts = (
            (IDENTIFIER, "_Pragma"),
            (PUNCTUATOR, "("),
            (STRING, f'"{text}"'),
            (PUNCTUATOR, ")"),
        )
        return [name._replace(kind=kind, text=part) for kind, part in parts]

    def _expand_pragma_operators(self, line: list[Token]) -> list[Token]:
        output, at = list[Token](), 0
        while at < len(line):
            if line[at].text == "_Pragma" and at + 3 < len(line) and line[at + 2].kind == STRING:
                text = line[at + 2].text[1:-1].replace('\\"', '"').replace("\\\\", "\\")
                output += self._pragma_operator(line[at], tokenize(text, line[at].source))
                at += 4
            else:
                output.append(line[at])
                at += 1
        return output


_ABSENT_QUERIES = frozenset(
    {"__has_feature", "__has_extension", "__has_builtin", "__has_attribute", "__has_cpp_attribute"}
)


class _FileReader:
    """The lines of one file: which of them are active, and what each directive does."""

    def __init__(self, owner: Preprocessor, scanner: Scanner, file: int, path: Path | None) -> None:
        self._owner = owner
        self._scanner = scanner
        self._file = file
        self._path = path
        self._conditions: list[_Conditional] = []

    def run(self) -> None:
        while (line := self._scanner.next_line()) is not None:
            if line and line[0].text == "#":
                self._directive(line)
            elif line and self._active():
                self._owner.emit(line, self)
        if self._conditions:
            raise error_at(self._conditions[-1].opened, "unterminated conditional directive")

    def next_argument_line(self) -> list[Token] | None:
        """The next line for a macro's argument list that goes on."""
        line = self._scanner.next_line()
        if line and line[0].text == "#":
            raise error_at(line[0], "a directive inside the arguments of a macro is not supported")
        return line

    def _active(self) -> bool:
        return not self._conditions or self._conditions[-1].active

    def _directive(self, line: list[Token]) -> None:
        if len(line) == 1:
            return
        name, tokens = line[1], line[2:]
        if self._conditional(name, tokens) or not self._active():
            return
        owner = self._owner
        if name.text == "include":
            owner.include(name, tokens)
        elif name.text == "define":
            owner.define(name, tokens)
        elif name.text == "undef":
            owner.undefine(name, tokens)
        elif name.text == "pragma":
            owner.pragma(name, tokens, self._path)
        elif name.text == "line":
            self._set_line(name, tokens)
        elif name.text == "error":
            raise error_at(name, spell(tokens))
        elif name.text != "warning":
            raise error_at(name, f"unknown directive '#{name.text}'")

    def _conditional(self, name: Token, tokens: list[Token]) -> bool:
        owner, word = self._owner, name.text
        if word in ("if", "ifdef", "ifndef"):
            outer = self._active()
            taken = False
            if outer:
                taken = (
                    owner.condition(name, tokens)
                    if word == "if"
                    else owner.is_defined(name, tokens)
                )
            self._conditions.append(
                _Conditional(name, outer, taken != (word == "ifndef") and outer)
            )
            return True
        if word not in ("elif", "else", "endif"):
            return False
        if not self._conditions:
            raise error_at(name, f"#{word} without #if")
        current = self._conditions[-1]
        if word == "endif":
            self._conditions.pop()
        elif current.closed:
            raise error_at(name, f"#{word} after #else")
        else:
            wanted = current.outer and not current.taken
            current.active = wanted and (word == "else" or owner.condition(name, tokens))
            current.taken = current.taken or current.active
            current.closed = word == "else"
        return True

    def _set_line(self, name: Token, tokens: list[Token]) -> None:
        if not tokens or not tokens[0].text.isdigit():
            raise error_at(name, "#line needs a line number")
        scanner = self._scanner
        scanner.line_shift = int(tokens[0].text) - scanner.physical_line
        if len(tokens) > 1:
            if tokens[1].kind != STRING:
                raise error_at(tokens[1], "#line needs a file name in double quotes")
            scanner.source = tokens[1].text[1:-1]
        self._owner.segments.append(
            SourceSegment(self._file, scanner.physical_line, scanner.source, scanner.line_shift)
        )


class _Conditional:
    """One `#if` that is open: whether its lines count, and whether one of its branches was
    taken."""

    def __init__(self, opened: Token, outer: bool, active: bool) -> None:
        self.opened = opened
        self.outer = outer
        self.active = active
        self.taken = active
        self.closed = False


def _header_name(name: Token, tokens: list[Token]) -> str:
    if tokens and tokens[0].kind == STRING:
        return tokens[0].text[1:-1]
    if tokens and tokens[0].text == "<":
        ends = [index for index, token in enumerate(tokens) if token.text == ">"]
        if ends:
            return "".join(token.text for token in tokens[1 : ends[0]])
    raise error_at(name, 'expected "file" or <file>')


def _is_metal_header(target: str) -> bool:
    return (
        "/" not in target
        and target.startswith("metal_")
        or target.startswith(("MetalPerformancePrimitives/", "simd/"))
    )


def _closing(name: Token, tokens: list[Token], at: int) -> int:
    if at >= len(tokens) or tokens[at].text != "(":
        raise error_at(name, "expected '(' in the preprocessor expression")
    for end in range(at, len(tokens)):
        if tokens[end].text == ")":
            return end
    raise error_at(name, "missing ')' in the preprocessor expression")


def _metal_pragma(name: Token, tokens: list[Token]) -> list[Token]:
    """The same in clang's words; empty for math modes, since everything here is computed in the
    safe mode."""
    words = [token.text for token in tokens]
    if words[1:3] == ["fp", "contract"]:
        return [tokens[0]._replace(text="clang"), *tokens[1:]]
    if (
        words[1:2] == ["internals"]
        or words[1:2] == ["fp"]
        and words[2:3] in (["math_mode"], ["math_fp_func"])
    ):
        return []
    raise error_at(name, f"metalsim does not know '#pragma {' '.join(words)}'")
