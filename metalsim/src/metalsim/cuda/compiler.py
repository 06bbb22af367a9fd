"""C++ from the front end to PTX: clang and NVIDIA's libdevice, no CUDA toolkit."""

from __future__ import annotations

import functools
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

from ..compiler import (
    Compiler,
    clang_programs,
    described,
    find_compiler,
    message_flags,
    run_together,
)
from ..errors import CompilerNotFoundError
from ..machine import DEBUG_PREFIX, DIRECTORY, INCLUDE_DIRECTORY

# PTX of this architecture runs on it and all later ones: Ampere has bfloat and TF32 products.
FLAGS = (
    *("--target=nvptx64-nvidia-cuda", "-march=sm_80"),
    *("-Xclang", "-target-feature", "-Xclang", "+ptx78"),
    *("-x", "c++", "-std=c++2b", "-O3", "-ffreestanding", "-nocudalib"),
    *("-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fno-strict-aliasing", "-fsigned-char"),
    "-fwrapv",
    # Every operation rounds by itself, as in the CPU engine; and no call of a barrier or a shuffle
    # may move into a branch.
    *("-ffp-contract=off", "-Xclang", "-fconvergent-functions"),
    # Lines for compute-sanitizer, without the folder of the cache.
    *("-gline-directives-only", "-fdebug-compilation-dir=."),
    "-DMETALSIM_BACKEND_CUDA",
)
_OLDEST = 19
"""The first clang with half arithmetic for this target."""
_LIBDEVICE = "libdevice.10.bc"
_TOOLKITS = ("/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr/lib/nvidia-cuda-toolkit")


def find_ptx_compiler() -> Compiler:
    """$METALSIM_CXX if it is a clang, else the newest clang++ on the path, else ziglang's clang.

    Raises CompilerNotFoundError, which says what to install.
    """
    chosen = find_compiler() if os.environ.get("METALSIM_CXX") else None
    path = os.environ.get("PATH", os.defpath)
    if chosen is not None and chosen.family == "clang":
        candidates = [chosen]
    else:
        candidates = [described((program,), program) for program in clang_programs(path)[:1]]
        candidates += _ziglang()
    for candidate in candidates:
        if _major_version(candidate.command) >= _OLDEST:
            return candidate
    raise CompilerNotFoundError(
        f"compile_shader: engine='cuda' needs clang {_OLDEST} or newer with the nvptx target and "
        "found none: install clang (Debian, Ubuntu: apt install clang), or `pip install ziglang`, "
        "or set METALSIM_CXX"
    )


def _ziglang() -> list[Compiler]:
    found = importlib.util.find_spec("ziglang")
    if found is None or found.origin is None:
        return []
    # Its headers do not come by themselves for this target.
    headers = str(Path(found.origin).parent / "lib/include")
    zig = (sys.executable, "-m", "ziglang", "clang", "-nostdinc", "-isystem", headers)
    return [described(zig, found.origin)]


@functools.lru_cache(maxsize=8)
def _major_version(command: tuple[str, ...]) -> int:
    run = subprocess.run([*command, "-dumpversion"], capture_output=True, text=True, check=False)
    first = run.stdout.strip().partition(".")[0]
    return int(first) if first.isdigit() else 0


def find_libdevice() -> Path:
    """NVIDIA's library of mathematical functions: $METALSIM_LIBDEVICE, else triton's copy, else a
    CUDA toolkit's."""
    chosen = os.environ.get("METALSIM_LIBDEVICE")
    if chosen:
        return Path(chosen)
    found = _installed_libdevice()
    if found is None:
        raise CompilerNotFoundError(
            f"compile_shader: engine='cuda' needs {_LIBDEVICE} and found none: it comes with "
            "triton (pip install triton) and with CUDA toolkits; or set METALSIM_LIBDEVICE to it"
        )
    return found


@functools.lru_cache(maxsize=1)
def _installed_libdevice() -> Path | None:
    toolkits = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if name in os.environ]
    places = [path / "nvvm/libdevice" for path in (*toolkits, *map(Path, _TOOLKITS))]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.insert(0, Path(triton.origin).parent / "backends/nvidia/lib")
    found = (place / _LIBDEVICE for place in places)
    versioned = sorted(Path("/usr/local").glob(f"cuda-*/nvvm/libdevice/{_LIBDEVICE}"), reverse=True)
    return next((path for path in (*found, *versioned) if path.exists()), None)


def build_ptx(compiler: Compiler, options: tuple[str, ...], code: str, output: Path) -> None:
    """C++ from the front end as PTX text at `output`.

    Raises CompilationFailed for code that does not compile.
    """
    source = output.with_name("program.cpp")
    source.write_text(code, encoding="ascii")
    libdevice = ("-Xclang", "-mlink-builtin-bitcode", "-Xclang", str(find_libdevice()))
    flags = [*FLAGS, *options, f"-I{INCLUDE_DIRECTORY}", *libdevice]
    flags.append(f"-fdebug-prefix-map={DIRECTORY.parent}/={DEBUG_PREFIX}")
    flags += message_flags("clang")
    # The bare name keeps the cache's directory out of line information.
    run_together([[*compiler.command, *flags, "-S", source.name, "-o", output.name]], output.parent)
