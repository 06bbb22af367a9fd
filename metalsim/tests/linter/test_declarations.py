"""Lint declares all that metalsim's own library has, so that no use of it is called unknown."""

from __future__ import annotations

import re
from collections.abc import Iterator

import metalsim
from metalsim.machine import INCLUDE_DIRECTORY

_NAMESPACE = re.compile(r"namespace ([\w:]+) \{")
_NAME = re.compile(
    r"METALSIM_(?:COUNTED|MATH_\d|VECTOR_\d|TEST|SIMD_COMBINE|QUAD_\w+|ATOMIC_UPDATE|TRAIT)\((\w+)"
    r"|(?:METALSIM_CONSTANT )?inline constexpr \w+ (\w+)"
    r"|METALSIM_INLINE .*?\b(\w+)\("
    r"|(?:struct|class|enum class|enum) (?:alignas\(.*\) )?(\w+)"
    r"|using (\w+) ="
)
HEADER = """#include <metal_stdlib>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
"""


def library_names() -> Iterator[tuple[str, str]]:
    """(namespace, name) of what Metal's namespaces hold in metalsim's headers."""
    for path in sorted((INCLUDE_DIRECTORY / "metalsim").glob("*.h")):
        namespace = ""
        for line in path.read_text().splitlines():
            if opened := _NAMESPACE.match(line):
                namespace = opened[1]
            elif line.startswith("}  // namespace"):
                namespace = "metal" if "fast" in line or "precise" in line else ""
            elif namespace in ("metal", "mpp::tensor_ops") and (match := _NAME.match(line)):
                name = next(group for group in match.groups() if group)
                if not name.startswith("operator"):
                    yield namespace, name


def test_the_whole_library_is_declared() -> None:
    names = set(library_names())
    assert {("metal", "fma"), ("metal", "simd_prefix_exclusive_sum")} <= names
    assert {
        ("metal", "is_pointer_v"),
        ("metal", "atomic"),
        ("mpp::tensor_ops", "matmul2d"),
    } <= names
    lines = "".join(f"using {namespace}::{name};\n" for namespace, name in sorted(names))
    findings = metalsim.lint(f"{HEADER}{lines}", metal_version="4.0")
    assert not findings, "\n".join(map(str, findings))
