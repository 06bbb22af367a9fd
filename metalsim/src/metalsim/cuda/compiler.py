"""C++ from the front end to PTX: clang and NVIDIA's libdevice, no CUDA toolkit."""

from __future__ import annotations

import functools
import importlib.util
import os
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
from ..machine import INCLUDE_DIRECTORY

# PTX of this architecture runs on it and all later ones: Ampere has bfloat and TF32 products.
_TARGET = (
    *("--target=nvptx64-nvidia-cuda", "-march=sm_80"),
    *("-Xclang", "-target-feature", "-Xclang", "+ptx78"),
)
_FLAGS = (
    *("-x", "c++", "-std=c++2b", "-O3", "-ffreestanding", "-nocudalib"),
    *("-fno-exceptions", "-fno-rtti", "-fno-math-errno", "-fno-strict-aliasing", "-fsigned-char"),
    # Every operation rounds by itself, as in the CPU engine; and no call of a barrier or a shuffle
    # may move into a branch.
    *("-ffp-contract=off", "-Xclang", "-fconvergent-functions"),
    "-DMETALSIM_BACKEND_CUDA",
)
_LIBDEVICE = "libdevice.10.bc"
_TOOLKITS = ("/usr/local/cuda", "/opt/cuda", "/usr/lib/cuda", "/usr/lib/nvidia-cuda-toolkit")


def find_clang() -> Compiler:
    """$METALSIM_CXX if it is a clang, else clang++ of the highest version, else ziglang's clang.

    Raises CompilerNotFoundError, which says what to install.
    """
    if os.environ.get("METALSIM_CXX"):
        chosen = find_compiler()
        if chosen.family == "clang":
            return chosen
    programs = clang_programs(os.environ.get("PATH", os.defpath))
    if programs:
        return described((programs[0],), programs[0])
    ziglang = importlib.util.find_spec("ziglang")
    if ziglang is not None and ziglang.origin is not None:
        headers = str(Path(ziglang.origin).parent / "lib/include")
        zig = (sys.executable, "-m", "ziglang", "clang", "-nostdinc", "-isystem", headers)
        return described(zig, ziglang.origin)
    raise CompilerNotFoundError(
        "compile_shader: engine='cuda' needs clang with the nvptx target and found none: install "
        "clang (Debian, Ubuntu: apt install clang), or `pip install ziglang`, or set METALSIM_CXX"
    )


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
    flags = [*_TARGET, *_FLAGS, *options, f"-I{INCLUDE_DIRECTORY}", *libdevice]
    flags += message_flags("clang")
    # The bare name keeps the cache's directory out of line information.
    run_together([[*compiler.command, *flags, "-S", source.name, "-o", output.name]], output.parent)
