"""The engine that runs kernels on this machine's CPU."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from . import cache, machine
from .compiler import CompilationFailed, Compiler, build_kernels, build_runtime
from .launch import KernelRecord, LoadedLibrary


class CpuEngine(NamedTuple):
    """A compiler, a mode of machine.MODES, and the cache where the machine itself is kept."""

    compiler: Compiler
    mode: str
    inactive_lanes: bool
    directory: Path
    suffix: str = ".so"

    def digest(self, *parts: str) -> str:
        """Stands for `parts`, the machine, its flags and the compiler."""
        # The flags depend on the processor: a cache on a shared disk serves several.
        return self._digest(self._flags(), *parts)

    def _flags(self) -> list[str]:
        return machine.kernel_flags(self.compiler.family, self.mode, self.inactive_lanes)

    def _digest(self, flags: list[str], *parts: str) -> str:
        identity = self.compiler.identity
        return cache.digest(cache.machine_digest(), identity, self.mode, *flags, *parts)

    def compiler_identity(self) -> str:
        """None: it is a part of every digest."""
        return ""

    def build(self, code: str, path: Path) -> None:
        """A kernel library beside the machine that it runs on."""
        build_kernels(self.compiler, self._flags(), code, self._runtime(), path)

    def threadgroup_bytes(self, path: Path, kernels: int) -> list[int]:
        """What the library's kernels say."""
        library = LoadedLibrary(path)
        return [library.threadgroup_bytes(number) for number in range(kernels)]

    def load(self, path: Path, records: list[KernelRecord]) -> LoadedLibrary:
        """The library in this process."""
        del records
        self._runtime()
        return LoadedLibrary(path)

    def _runtime(self) -> Path:
        def build(path: Path) -> None:
            try:
                build_runtime(self.compiler, self.mode, path)
            except CompilationFailed as failure:
                raise RuntimeError(
                    "metalsim's runtime does not compile (clang 16, g++ 12 or newer is needed):\n"
                    f"{failure.output}"
                ) from None

        flags = machine.kernel_flags(self.compiler.family, self.mode)
        return cache.shared_file(self.directory, f"machine-{self._digest(flags)}.so", build)
