"""`lint`: all rules over one program."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from ..frontend import Preprocessed
from ..frontend.constant_values import evaluate_attributes
from ..frontend.function_constants import FunctionConstants
from ..include_path import read_include_dirs, torch_headers
from .clang import ANY_THREAD, check_types, find_clang, run_clang, translate_for_clang
from .findings import LintFinding
from .kernels import check_kernels
from .pointers import check_pointers
from .reader import Reader
from .recursion import check_recursion
from .segments import Recorder
from .words import check_macros, check_words

VERSIONS = ("3.0", "3.1", "3.2", "4.0", "4.1")
"""Versions of Metal that a program can be linted for."""
NEEDS_CLANG = (
    "constant-write",
    "function-pointer",
    "recursion",
    "static-local",
    "type",
    "variable-length-array",
)
"""Rules that are left out where there is no clang; conversions between address spaces too."""
_FRONT_END_RULES = (
    ("source", "initializer"),
    ("buffer-index", "buffer("),
    ("program-scope", "program scope variable"),
    ("threadgroup-variable", "threadgroup variable"),
    ("version", "needs Metal"),
)
"""Which rule the front end's message belongs to; "source" for all others."""
_COMPILERS = ("source", "type")


def lint(
    source: str,
    *,
    metal_version: str = "3.1",
    include_dirs: Sequence[str | os.PathLike[str]] = (),
    use_clang: bool = True,
) -> list[LintFinding]:
    """What Apple's compiler would refuse of a Metal program, by the rules in RULES.

    It approximates: nothing here was compared with Apple's compiler. The rules that need a clang
    come last: they are not asked of a program in which the others found errors of structure.

    Args:
        source: Metal Shading Language.
        metal_version: of VERSIONS. torch compiles for 3.1 on macOS 14, 3.2 on 15 and 4.0 on 26.
        include_dirs: where `#include` looks, before torch's own headers if torch is installed.
        use_clang: False leaves out the rules that need a clang (NEEDS_CLANG), which are also left
            out where none is installed.

    Returns the findings by file, line and column.

    Raises ValueError for an unknown version.
    """
    if metal_version not in VERSIONS:
        raise ValueError(
            f"lint: metal_version is {metal_version!r}, expected one of {', '.join(VERSIONS)}"
        )
    found = list(_findings(source, metal_version, include_dirs, use_clang))
    order = {name: at for at, name in enumerate(dict.fromkeys(one.source for one in found))}
    # What one rule says of a line in its own words, compilers say again in theirs.
    told = {(one.source, one.line) for one in found if one.rule not in _COMPILERS}
    unique = {
        one[:4]: one
        for one in reversed(found)
        if one.rule not in _COMPILERS or (one.source, one.line) not in told
    }
    return sorted(unique.values(), key=lambda one: (order[one.source], one.line, one.column))


def _findings(
    source: str,
    metal_version: str,
    include_dirs: Sequence[str | os.PathLike[str]],
    use_clang: bool,
) -> Iterator[LintFinding]:
    version = int(metal_version.replace(".", "")) * 10
    directories = read_include_dirs("lint", include_dirs)
    reader = Reader(directories, torch_headers(), version)
    try:
        preprocessed = reader.run(source)
    except SyntaxError as error:
        yield from reader.findings
        yield _front_end_finding(error)
        return
    yield from reader.findings
    yield from check_macros(preprocessed)
    yield from check_words(preprocessed, version)
    yield from _check_structure(preprocessed, version, use_clang)


def _check_structure(
    preprocessed: Preprocessed, version: int, use_clang: bool
) -> Iterator[LintFinding]:
    constants = FunctionConstants({}, needed=False)
    tokens = evaluate_attributes(preprocessed.tokens)
    recorder = Recorder(tokens, constants, is_thread_implied=version < 410)
    try:
        recorder.run()
    except SyntaxError as error:
        recorder.refused.append(error)
    yield from check_pointers(recorder.segments)
    yield from check_kernels(recorder.segments, tokens)
    yield from map(_front_end_finding, recorder.refused)
    if recorder.refused:
        return
    clang = find_clang() if use_clang else None
    if clang is None:
        return
    translation = translate_for_clang(recorder.output, recorder.kernels, preprocessed)
    compiled = run_clang(clang, translation.code)
    findings = list(check_types(compiled.messages, translation))
    yield from findings
    if findings:
        return
    if compiled.messages:  # all of them clang's own
        compiled = run_clang(clang, f"{ANY_THREAD}{translation.code}")
    yield from check_recursion(compiled.code)


def _front_end_finding(error: SyntaxError) -> LintFinding:
    text = str(error.msg).partition(" error: ")[2]
    rule = next((name for name, words in _FRONT_END_RULES if words in text), "source")
    place = (error.filename or "", error.lineno or 1, error.offset or 1)
    return LintFinding(rule, *place, text)
