"""One request for a program, and the way from it to a library: from the cache where it is, else
through an engine's compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

from . import cache
from .compiler import CompilationFailed
from .diagnostics import compile_error
from .frontend import FunctionConstant, Translation, translate
from .include_path import torch_headers
from .launch import KernelRecord, Library


class Engine(Protocol):
    """What compiles C++ from the front end, and runs the result."""

    @property
    def suffix(self) -> str:
        """Of the files that it builds."""
        ...

    def digest(self, *parts: str) -> str:
        """Stands for `parts` and everything of this engine that a library depends on."""
        ...

    def compiler_identity(self) -> str:
        """The compiler of this machine, "" where a library of any compiler will do."""
        ...

    def build(self, code: str, path: Path) -> None:
        """C++ from the front end as a library at `path`; CompilationFailed where it is wrong."""
        ...

    def threadgroup_bytes(self, path: Path, kernels: int) -> list[int]:
        """Threadgroup memory of the library's kernels, by number."""
        ...

    def load(self, path: Path, records: list[KernelRecord]) -> Library:
        """The library at `path`, ready for launches."""
        ...


class Build(NamedTuple):
    """The arguments of compile_shader, read and checked."""

    source: str
    function_constants: dict[str | int, FunctionConstant]
    include_dirs: tuple[Path, ...]
    tensor_definitions: str
    directory: Path
    engine: Engine

    def library(self) -> tuple[Library, list[KernelRecord]]:
        """The compiled program, and its kernels."""
        constants = repr(sorted(self.function_constants.items(), key=str))
        directories = map(str, self.include_dirs)
        parts = (cache.front_end_digest(), self.source, constants, self.tensor_definitions)
        key = self.engine.digest(*parts, *directories)
        record_name = f"program-{key}.json"
        record = cache.read_record(self.directory, record_name)
        if record is None or not self._serves(record):
            record = self._compile()
            # A program that reads other files has to be looked at again each time.
            if not record.pop("included"):
                cache.write_record(self.directory, record_name, record)
        records = [KernelRecord(*kernel) for kernel in record["kernels"]]
        return self.engine.load(self.directory / str(record["file"]), records), records

    def _serves(self, record: dict[str, Any]) -> bool:
        compiler = self.engine.compiler_identity()
        wanted = compiler in ("", record.get("compiler"))
        return wanted and (self.directory / str(record["file"])).exists()

    def _compile(self) -> dict[str, Any]:
        translation = translate(
            self.source,
            function_constants=self.function_constants,
            include_dirs=self.include_dirs,
            system_dirs=torch_headers(),
            tensor_definitions=self.tensor_definitions,
        )
        compiler = self.engine.compiler_identity()
        name = f"kernels-{self.engine.digest(translation.code, compiler)}{self.engine.suffix}"
        path = cache.shared_file(
            self.directory, name, lambda target: self._build(translation, target)
        )
        sizes = self.engine.threadgroup_bytes(path, len(translation.kernels))
        kernels = [
            KernelRecord(
                kernel.name,
                number,
                kernel.max_threads,
                kernel.writable_buffers,
                size,
                kernel.required_buffers,
                kernel.group,
            )
            for number, (kernel, size) in enumerate(zip(translation.kernels, sizes, strict=True))
        ]
        included = translation.preprocessed.included
        return {"file": name, "kernels": kernels, "included": included, "compiler": compiler}

    def _build(self, translation: Translation, path: Path) -> None:
        try:
            self.engine.build(translation.code, path)
        except CompilationFailed as failure:
            error = compile_error(failure.output, translation)
            if error is not None:
                raise error from None
            raise RuntimeError(f"metalsim: the C++ compiler failed:\n{failure.output}") from None
