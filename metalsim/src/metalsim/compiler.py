"""The C++ compiler: finding one, and building shared libraries with it."""

from __future__ import annotations

import functools
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import machine
from .errors import CompilerNotFoundError

_MISSING = (
    "metalsim needs a C++ compiler and found none: install clang (Debian, Ubuntu: apt install "
    "clang; macOS: xcode-select --install) or g++ 12 or newer, or `pip install ziglang`, or set "
    "METALSIM_CXX to a compiler"
)


class Compiler(NamedTuple):
    """How to call a compiler. `identity` changes when the program on disk does; no process is
    needed to know it."""

    command: tuple[str, ...]
    identity: str

    @property
    def family(self) -> str:
        """One of machine.FAMILIES."""
        return _family(self.command)


class CompilationFailed(Exception):
    """The compiler said no; `output` is what it printed."""

    def __init__(self, output: str) -> None:
        super().__init__(output)
        self.output = output


def find_compiler() -> Compiler:
    """$METALSIM_CXX, else clang++ of the highest version, else g++, else the ziglang package.

    Raises CompilerNotFoundError, which says what to install.
    """
    return _find(os.environ.get("METALSIM_CXX", ""), os.environ.get("PATH", os.defpath))


def clang_drivers() -> list[tuple[str, ...]]:
    """Commands that may be clang's own driver, which takes every language: that of METALSIM_CXX,
    those on the path, that of the ziglang package."""
    path = os.environ.get("PATH", os.defpath)
    commands = [tuple(shlex.split(os.environ.get("METALSIM_CXX", "")))]
    commands += [(program,) for program in clang_programs(path)]
    if importlib.util.find_spec("ziglang") is not None:
        commands.append((sys.executable, "-m", "ziglang", "clang"))
    # `zig c++` is a driver of zig's, which knows C++ alone.
    return [command for command in commands if command and command[-1] != "c++"]


@functools.lru_cache(maxsize=8)
def _find(chosen: str, path: str) -> Compiler:
    if chosen:
        command = shlex.split(chosen)
        program = shutil.which(command[0], path=path)
        if program is None:
            raise CompilerNotFoundError(
                f"METALSIM_CXX names {command[0]!r}, which is not a program here"
            )
        return described((program, *command[1:]), program)
    for program in (
        *clang_programs(path),
        shutil.which("g++", path=path),
        shutil.which("c++", path=path),
    ):
        if program is not None:
            return described((program,), program)
    ziglang = importlib.util.find_spec("ziglang")
    if ziglang is not None and ziglang.origin is not None:
        return described((sys.executable, "-m", "ziglang", "c++"), ziglang.origin)
    raise CompilerNotFoundError(_MISSING)


def clang_programs(path: str) -> list[str]:
    """Every clang++ on the path: `clang++-19` before `clang++-15` before `clang++`."""
    found = list[tuple[int, str]]()
    for directory in path.split(os.pathsep):
        try:
            names = os.listdir(directory or ".")
        except OSError:
            continue
        for name in names:
            stem, _, version = name.partition("-")
            if stem == "clang++" and (version.isdigit() or not version):
                found.append((-int(version or 0), os.path.join(directory, name)))
    return [program for _, program in sorted(found, key=lambda item: item[0])]


def described(command: tuple[str, ...], program: str) -> Compiler:
    """`command`, which runs the file `program`."""
    real = os.path.realpath(program)
    status = os.stat(real)
    return Compiler(command, f"{' '.join(command)}|{real}|{status.st_size}|{status.st_mtime_ns}")


@functools.lru_cache(maxsize=8)
def _family(command: tuple[str, ...]) -> str:
    names = [os.path.basename(word) for word in command]
    if any(name.startswith(("zig", "ziglang")) for name in names):
        return "zig"
    if any(name.startswith("clang") for name in names):
        return "clang"
    # On macOS, and behind wrappers, the name says nothing.
    version = subprocess.run(
        [*command, "--version"], capture_output=True, text=True, check=False
    ).stdout
    return "clang" if "clang" in version else "gcc"


def build_runtime(compiler: Compiler, mode: str, output: Path) -> None:
    """The machine of `mode` as a shared library at `output`."""
    objects = list[Path]()
    commands = list[list[str]]()
    for source in machine.runtime_sources():
        objects.append(output.with_name(f"{source.stem}.o"))
        flags = machine.runtime_flags(compiler.family, mode)
        commands.append([*compiler.command, *flags, "-c", str(source), "-o", str(objects[-1])])
    run_together(commands)
    _link(compiler, objects, [], output)


def build_kernels(
    compiler: Compiler, flags: Sequence[str], code: str, runtime: Path, output: Path
) -> None:
    """C++ from the front end as a shared library at `output`, which finds `runtime` beside itself;
    `flags` are machine.kernel_flags.

    Raises CompilationFailed for code that does not compile.
    """
    source, compiled = output.with_name("program.cpp"), output.with_name("program.o")
    source.write_text(code, encoding="ascii")
    flags = [*flags, *message_flags(compiler.family)]
    # The bare name keeps the cache's directory, which may move, out of debug information.
    run_together(
        [[*compiler.command, *flags, "-c", source.name, "-o", compiled.name]], output.parent
    )
    _link(compiler, [compiled], [runtime], output)


def message_flags(family: str) -> list[str]:
    """What makes a compiler of `family` print errors as the module diagnostics reads them."""
    if family == "gcc":
        return ["-fno-diagnostics-show-caret", "-fdiagnostics-color=never", "-fmax-errors=20"]
    return ["-fno-caret-diagnostics", "-fno-color-diagnostics", "-ferror-limit=20"]


def _link(compiler: Compiler, objects: list[Path], libraries: list[Path], output: Path) -> None:
    name = output.name
    if platform.system() == "Darwin":
        naming = [f"-Wl,-install_name,@rpath/{name}", "-Wl,-rpath,@loader_path"]
    else:
        naming = [f"-Wl,-soname,{name}", "-Wl,-rpath,$ORIGIN"]
    inputs = [str(path) for path in (*objects, *libraries)]
    run_together(
        [[*compiler.command, "-shared", "-o", str(output), *inputs, *naming, *machine.link_flags()]]
    )


def run_together(commands: Sequence[Sequence[str]], directory: Path | None = None) -> None:
    """Run every command at once; CompilationFailed with the output of the first that fails."""
    processes = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=directory
        )
        for command in commands
    ]
    outputs = [process.communicate()[0] for process in processes]
    for command, process, output in zip(commands, processes, outputs, strict=True):
        if process.returncode:
            raise CompilationFailed(f"{shlex.join(command)}\n{output}")
