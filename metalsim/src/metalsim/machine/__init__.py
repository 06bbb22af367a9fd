"""How to build the machine (the C++ runtime) and the kernel libraries that run on it.

The runtime is one shared library a (compiler, mode); a kernel library is one object linked against
it. Compile and link in two steps: `check` compiles kernels with the thread sanitizer's
instrumentation, whose calls the runtime answers itself, so the sanitizer must not reach the link
line. Give the runtimes no common soname and load them RTLD_LOCAL: both modes may live in one
process.
"""

from __future__ import annotations

import platform
from pathlib import Path

DIRECTORY = Path(__file__).resolve().parent
INCLUDE_DIRECTORY = DIRECTORY.parent / "builtins"  # for `#include <metalsim/shim.h>`
DEBUG_PREFIX = "/metalsim/"
"""Where debug information says that metalsim's own headers lie, wherever they are installed."""
ABI_VERSION = 4
MODES = ("fast", "check")
FAMILIES = ("clang", "gcc", "zig")

_COMMON = (
    "-std=c++2b",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-fsigned-char",
    "-fwrapv",
    "-ftls-model=initial-exec",
    "-ffp-contract=off",
    "-DMETALSIM_BACKEND_CPU",
)
# A thread's private arrays must fit its stack (launch.cpp): larger ones are errors of the source.
_FRAME_LIMIT = {
    "clang": ("-Wframe-larger-than=65536", "-Werror=frame-larger-than"),
    "gcc": ("-Werror=frame-larger-than=65536",),
    "zig": ("-Wframe-larger-than=65536", "-Werror=frame-larger-than"),
}
# Rounds half after every operation, as the GPU does, instead of once an expression.
_HALF_ROUNDING = ("-Xclang", "-ffloat16-excess-precision=none")
# clang would leave out the load of `x[i] += ...`, which is followed by a store to the same place.
_CLANG_INSTRUMENTATION = (
    *("-fsanitize=thread", "-mllvm", "-tsan-instrument-func-entry-exit=0"),
    *("-mllvm", "-tsan-instrument-read-before-write=1"),
)
# The machine answers the calls of these too.
_ALIGNMENT = ("-fsanitize=alignment", "-fsanitize-recover=alignment")
# Names of types in these calls tell the arrays that are watched from others, which g++'s do not.
# As in C, an array of one element at the end of a structure may stand for more.
_BOUNDS = (
    *("-fsanitize=array-bounds", "-fsanitize-recover=array-bounds", "-fstrict-flex-arrays=1"),
)
# What the package `lines` reads: lines and inlined calls, and every call where it stands.
_LINES = (
    *("-gdwarf-4", "-gstrict-dwarf", "-g1", "-fno-optimize-sibling-calls"),
    f"-fdebug-prefix-map={DIRECTORY.parent}/={DEBUG_PREFIX}",
)
# Which lanes are behind the others shows in where their code lies (divergence.cpp).
_NO_REORDERING = {
    "clang": ("-mllvm", "-disable-block-placement"),
    "gcc": ("-fno-reorder-blocks", "-fno-reorder-blocks-and-partition"),
    "zig": ("-mllvm", "-disable-block-placement"),
}
# The calls that lead to a rendezvous stay apart and can be followed (divergence.cpp).
_CLANG_WAYS = (
    *("-fno-omit-frame-pointer", "-Xclang", "-fconvergent-functions"),
    *("-mllvm", "-enable-tail-merge=false"),
)
_WAYS = {"clang": _CLANG_WAYS, "gcc": (), "zig": _CLANG_WAYS}
_INSTRUMENTATION = {
    "clang": _CLANG_INSTRUMENTATION,
    "gcc": ("-fsanitize=thread", "--param", "tsan-instrument-func-entry-exit=0"),
    "zig": _CLANG_INSTRUMENTATION,
}


def runtime_sources() -> list[Path]:
    """The translation units of the runtime, in a fixed order."""
    return sorted(DIRECTORY.glob("*.cpp"))


def inputs() -> list[Path]:
    """Every file that a compiled library depends on besides its own source (for content hashes)."""
    return [
        *runtime_sources(),
        *sorted(DIRECTORY.glob("*.h")),
        *sorted(INCLUDE_DIRECTORY.rglob("*.h")),
    ]


def runtime_flags(family: str, mode: str) -> list[str]:
    """Compiler flags for the runtime's own sources (never instrumented)."""
    flags = [*_COMMON, *_architecture_flags(family), "-O2", "-g0", "-pthread"]
    return [*flags, "-DMETALSIM_CHECK"] if mode == "check" else flags


def kernel_flags(family: str, mode: str, inactive_lanes: bool = False) -> list[str]:
    """Compiler flags for one kernel library's object."""
    flags = [*_COMMON, *_architecture_flags(family), f"-I{INCLUDE_DIRECTORY}"]
    flags += _FRAME_LIMIT[family]
    if family != "gcc":
        flags += _HALF_ROUNDING
    if inactive_lanes:
        flags += ["-DMETALSIM_INACTIVE_LANES", "-fno-omit-frame-pointer", *_NO_REORDERING[family]]
        flags += _WAYS[family]
    if mode == "check":
        bounds = () if family == "gcc" else _BOUNDS
        instrumentation = (*_INSTRUMENTATION[family], *_ALIGNMENT, *bounds, *_WAYS[family])
        return [*flags, "-O1", *_LINES, "-DMETALSIM_CHECK", *instrumentation]
    return [*flags, "-O3", "-g0"]


def link_flags() -> list[str]:
    """Linker flags for both kinds of library (beside `-shared`, `-o` and the runtime's path)."""
    return ["-pthread", "-lm"]


def _architecture_flags(family: str) -> list[str]:
    """AVX2, FMA and half conversions on x86-64 processors that have them; else nothing."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return []
    try:
        features = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return []
    if not {"avx2", "fma", "f16c", "bmi2"} <= features:
        return []
    return ["-mcpu=x86_64_v3"] if family == "zig" else ["-march=x86-64-v3"]
