"""Lint declares what metalsim's own library has: no use of it is called unknown, and nothing that
it lacks is let through."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import metalsim
from metalsim import linter
from metalsim.machine import INCLUDE_DIRECTORY

_NAMESPACE = re.compile(r"namespace ([\w:]+) \{")
_NAME = re.compile(
    r"METALSIM_(?:COUNTED|COUNTED_BUILTIN|MATH_\d|BUILTIN_\d|VECTOR_\d|TEST|SIMD_COMBINE|QUAD_\w+"
    r"|ATOMIC_UPDATE|TRAIT|FUNCTION_\d|MEASURE_\d|UPDATE)\((\w+)"
    r"|(?:[\w:<>]+ )+(\w+)\([\w<>&*, =]*\);$"
    r"|(?:METALSIM_CONSTANT )?inline constexpr \w+ (\w+)"
    r"|METALSIM_INLINE .*?\b(\w+)\("
    r"|(?:struct|class|enum class|enum) (?:alignas\(.*\) )?(\w+)"
    r"|using (\w+) ="
)
LINTER = Path(linter.__file__).parent / "declarations"
HEADER = """#include <metal_stdlib>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
"""


def names_in(headers: Path) -> Iterator[tuple[str, str]]:
    """(namespace, name) of what Metal's namespaces hold in these headers."""
    for path in sorted((headers / "metalsim").glob("*.h")):
        namespace = ""
        for line in path.read_text().splitlines():
            if opened := _NAMESPACE.match(line):
                namespace = opened[1]
            elif line.startswith("}  // namespace"):
                namespace = ""
            elif namespace in ("metal", "mpp::tensor_ops") and (match := _NAME.match(line)):
                name = next(group for group in match.groups() if group)
                if not name.startswith(("operator", "metalsim_")):
                    yield namespace, name


def test_the_whole_library_is_declared() -> None:
    names = set(names_in(INCLUDE_DIRECTORY))
    assert {("metal", "fma"), ("metal", "simd_prefix_exclusive_sum")} <= names
    assert {
        ("metal", "is_pointer_v"),
        ("metal", "atomic"),
        ("mpp::tensor_ops", "matmul2d"),
    } <= names
    findings = metalsim.lint(using(names), metal_version="4.0")
    assert not findings, "\n".join(map(str, findings))


def test_nothing_else_is_declared() -> None:
    names = set(names_in(LINTER))
    assert {("metal", "fma"), ("metal", "simd_is_helper_thread"), ("metal", "dot")} <= names
    metalsim.compile_shader(using(names))


def using(names: set[tuple[str, str]]) -> str:
    """A program that names them all."""
    return HEADER + "".join(f"using {namespace}::{name};\n" for namespace, name in sorted(names))
