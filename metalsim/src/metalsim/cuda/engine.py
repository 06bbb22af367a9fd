"""The engine that runs kernels on NVIDIA GPUs."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .. import cache, machine
from ..errors import CompilerNotFoundError
from .compiler import FLAGS, build_ptx, find_ptx_compiler
from .ptx import threadgroup_bytes

if TYPE_CHECKING:
    from ..launch import KernelRecord
    from .library import PtxLibrary

FLOAT_PRODUCTS = {"fma": 1, "3xtf32": 3}
"""How 8x8 matrices of floats are multiplied, and METALSIM_FLOAT_PRODUCTS for it."""


class CudaEngine(NamedTuple):
    """`float_products` is one of FLOAT_PRODUCTS."""

    float_products: str = "fma"
    suffix: str = ".ptx"

    def digest(self, *parts: str) -> str:
        """Stands for `parts` and the shim; not for the compiler, so that a cache filled on one
        machine serves another that has none."""
        return cache.digest(_shim_digest(), *self._options(), *parts)

    def compiler_identity(self) -> str:
        """This machine's clang, "" if it has none."""
        try:
            return find_ptx_compiler().identity
        except CompilerNotFoundError:
            return ""

    def build(self, code: str, path: Path) -> None:
        """PTX of the kernels at `path`."""
        build_ptx(find_ptx_compiler(), self._options(), code, path)

    def threadgroup_bytes(self, path: Path, kernels: int) -> list[int]:
        """What the PTX declares."""
        sizes = threadgroup_bytes(path.read_text(encoding="ascii"))
        return [sizes.get(number, 0) for number in range(kernels)]

    def load(self, path: Path, records: list[KernelRecord]) -> PtxLibrary:
        """The program; GPUs load it when they first launch it."""
        from .library import PtxLibrary

        return PtxLibrary(path, {record.number: record.threadgroup_bytes for record in records})

    def _options(self) -> tuple[str, ...]:
        return (f"-DMETALSIM_FLOAT_PRODUCTS={FLOAT_PRODUCTS[self.float_products]}",)


@functools.lru_cache(maxsize=1)
def _shim_digest() -> str:
    headers = sorted(machine.INCLUDE_DIRECTORY.rglob("*.h"))
    shared = [machine.DIRECTORY / "engine.h", machine.DIRECTORY / "abi.h"]
    shared.append(Path(__file__).with_name("ptx.py"))  # what records keep is read by it
    return cache.digest(cache.digest_of([*headers, *shared]), *FLAGS)
