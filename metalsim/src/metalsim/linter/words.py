"""Rules about single words: what Metal does not have, what later versions have, reserved names."""

from __future__ import annotations

import re
from collections.abc import Iterator

from ..frontend.preprocessor import Preprocessed
from ..frontend.syntax import closing, is_attribute
from ..frontend.tokens import IDENTIFIER, NUMBER, Token
from .findings import LintFinding, finding_at

REFUSED = {
    "double": "double",
    "goto": "goto",
    "virtual": "virtual",
    "thread_local": "static-local",
    **dict.fromkeys(("new", "delete"), "dynamic-memory"),
    **dict.fromkeys(("throw", "try", "catch"), "exceptions"),
    **dict.fromkeys(("typeid", "dynamic_cast"), "rtti"),
}
"""Words that Metal does not have, each with its rule."""
_LAMBDAS = 320
_BFLOAT = 310
_BFLOAT_LITERAL = re.compile(r"(?!0[xX]).*[bB][fF]")
_VERSIONS = (
    (re.compile(r"(packed_)?bfloat[234]?|simdgroup_bfloat8x8"), _BFLOAT),
    (re.compile(r"atomic_float"), 300),
    (re.compile(r"atomic_thread_fence|thread_scope(_\w+)?|coherent"), 320),
    (re.compile(r"required_threads_per_threadgroup"), 400),
)
"""What came with which version: Metal Shading Language Specification, sections 2.1, 4.8, 5.1.3,
6.15."""
_RESERVED = re.compile(r"__\w*|_[A-Z]\w*")
_KNOWN = re.compile(
    r"__(metal_|METAL|HAVE_|builtin_|has_|is_|remove_|tensor_ops_detail)\w*"
    r"|_Pragma|_Static_assert"
    r"|__(attribute__|restrict|restrict__|cplusplus|asm|asm__|inline__|func__|alignof__)"
)
_DEFINE = re.compile(r"\s*#\s*define\s+(\w+)")
# A lambda stands where an operand may begin, behind one of these or at the beginning.
_BEFORE_OPERAND = frozenset("( [ { } ; , = + - * / % ! ~ < > | ^ ? : && || return".split())


def check_words(preprocessed: Preprocessed, version: int) -> Iterator[LintFinding]:
    """Findings about words and lambdas of the preprocessed program."""
    tokens = preprocessed.tokens
    for at, token in enumerate(tokens):
        before = tokens[at - 1].text if at else ""
        if token.text == "[":
            if version < _LAMBDAS and _is_lambda(tokens, at):
                message = "lambda expressions need Metal 3.2: write a function"
                yield finding_at("lambda", token, message)
        elif token.kind == IDENTIFIER and before not in (".", "->"):
            yield from _check_name(token, before, tokens[at + 1 : at + 2], version)
        elif version < _BFLOAT and token.kind == NUMBER and _BFLOAT_LITERAL.fullmatch(token.text):
            yield finding_at("version", token, f"'{token.text}' needs Metal 3.1")


def _check_name(
    token: Token, before: str, following: list[Token], version: int
) -> Iterator[LintFinding]:
    text = token.text
    rule = REFUSED.get(text)
    if rule is not None:
        if before not in ("=", "::") or text != "delete":
            yield finding_at(rule, token, f"'{text}' is not supported in Metal")
    elif _RESERVED.fullmatch(text) and not _KNOWN.fullmatch(text):
        yield finding_at("reserved-name", token, f"'{text}' is a reserved name")
    elif text == "main" and following and following[0].text == "(":
        yield finding_at("reserved-name", token, "no function can be named 'main' in Metal")
    for names, needed in _VERSIONS:
        if version < needed and names.fullmatch(text):
            message = f"'{text}' needs Metal {needed // 100}.{needed // 10 % 10}"
            yield finding_at("version", token, message)


def _is_lambda(tokens: list[Token], at: int) -> bool:
    """Whether the '[' at `at` begins a lambda expression, not an index, an array, an attribute or a
    structured binding."""
    if is_attribute(tokens, at) or (at and is_attribute(tokens, at - 1)):
        return False
    if at and tokens[at - 1].text not in _BEFORE_OPERAND:
        return False
    after = closing(tokens, at) + 1
    return after < len(tokens) and tokens[after].text in ("(", "{", "<")


def check_macros(preprocessed: Preprocessed) -> Iterator[LintFinding]:
    """Findings about the names of macros."""
    for segment in preprocessed.segments:
        lines = preprocessed.files[segment.file]
        end = min(
            (
                other.first
                for other in preprocessed.segments
                if other.file == segment.file and other.first > segment.first
            ),
            default=len(lines) + 1,
        )
        for number in range(segment.first, end):
            match = _DEFINE.match(lines[number - 1])
            if match and match[1].startswith("__") and not match[1].endswith("_"):
                place = (segment.source, number + segment.shift, match.start(1) + 1)
                yield LintFinding("reserved-name", *place, f"'{match[1]}' is a reserved name")
