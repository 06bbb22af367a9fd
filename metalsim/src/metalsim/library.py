"""`compile_shader`, and what it returns."""

from __future__ import annotations

import os
from collections.abc import Container, Mapping, Sequence
from pathlib import Path

from . import cache
from .arguments import bind
from .build import Build, Engine
from .checks import Check, read_check
from .compiler import find_compiler
from .cooperative_layout import read_layout
from .cpu_engine import CpuEngine
from .cuda.engine import FLOAT_PRODUCTS, CudaEngine
from .error_buffer import ErrorBuffer
from .errors import ArgumentError, KernelNotFoundError, check_error
from .findings import Finding, collected
from .frontend import FunctionConstant
from .grid import read_grid
from .include_path import read_include_dirs
from .launch import MAX_BUFFERS, KernelRecord, Library, Outcome, Request
from .profile import PROFILE, LineCounters


class Kernel:
    """One kernel function, called as torch's: `kernel(*arguments, threads=, group_size=)`."""

    thread_execution_width = 32
    """Threads in a simdgroup."""

    def __init__(self, library: Library, record: KernelRecord, checks: int | None) -> None:
        self.name = record.name
        self.max_threads_per_threadgroup = record.max_threads
        """The most threads that a threadgroup may have."""
        self.required_threads_per_threadgroup = tuple(record.group)
        """The only size of a threadgroup that it takes, where it says so."""
        self.static_thread_group_memory_length = record.threadgroup_bytes
        """Bytes of its threadgroup variables."""
        self.writable_buffers = tuple(record.writable)
        """The buffer slots that the kernel may write to: those not declared const or constant."""
        self.counters: dict[str, int] = {}
        """Work done by the latest launch of a checking build: multiplies, bytes, barriers and
        more."""
        self.line_counters: tuple[LineCounters, ...] = ()
        """The same by source line, of a library that profiles."""
        self.findings: tuple[Finding, ...] = ()
        """What the checkers found in the latest launch."""
        self._required_buffers = tuple(record.required)
        self._library = library
        self._entry = library.entry(record.number)
        self._checks = checks

    def __call__(
        self,
        *args: object,
        threads: int | Sequence[int] | None = None,
        group_size: int | Sequence[int] | None = None,
        arg_casts: str | dict[int, str] | None = None,
        error_buf_idx: int | None = None,
    ) -> None:
        """Run the kernel to its end.

        Args:
            args: argument i goes to buffer slot i. A CPU tensor (for engine="cuda" one on the GPU)
                or a numpy array, by its memory: a view begins at its first element, and neither
                shape nor strides are passed; an array must be writable where the kernel may write
                to it, and engine="cuda" copies it there and back. An int or bool as int64, a float
                as float32, a numpy scalar in its own type, a list or tuple of ints or floats as an
                array of these, a list of tensors or arrays as an array of their addresses.
            threads: the grid in threads, one to three dimensions; by default the elements of the
                first tensor or array.
            group_size: threads in a threadgroup, as many dimensions; by default
                max_threads_per_threadgroup in the first one, or what the kernel's
                required_threads_per_threadgroup says.
            arg_casts: "fp16", "bf16", "int32", "int16", "int8" or "uint8" for every number, or by
                argument index.
            error_buf_idx: the slot of a `device c10::metal::ErrorMessages*`, which metalsim makes
                and reads.

        Raises:
            ValueError: a threadgroup with too many threads or not of the required size, or a grid
                without any.
            RuntimeError: arguments that torch refuses (ArgumentError, which is also a TypeError,
                for those of a wrong type).
            SimulationError: the kernel did something wrong, or reported an error of its own.
            CheckError: a SimulationError; the launch ran to its end with findings, which
                `collect_findings` gathers instead.
        """
        grid = read_grid(
            self.name,
            args,
            threads,
            group_size,
            self.max_threads_per_threadgroup,
            self.required_threads_per_threadgroup,
        )
        device = self._library.device
        buffers = bind(self.name, args, arg_casts, self.writable_buffers, device)
        errors = None if error_buf_idx is None else self._error_buffer(error_buf_idx)
        if error_buf_idx is not None and errors is not None:
            buffers[error_buf_idx] = errors.buffer()
        self._require_references(buffers)
        request = Request(self.name, grid.threads, grid.group, buffers, self._checks or 0)
        outcome = self._library.run(self._entry, request)
        self.counters = {} if self._checks is None else outcome.counters
        self.line_counters = outcome.lines
        self.findings = outcome.findings
        _raise_findings(outcome)
        if errors is not None:
            errors.check()

    def _error_buffer(self, slot: int) -> ErrorBuffer:
        if not 0 <= slot < MAX_BUFFERS:
            raise ArgumentError(f"{self.name}: error_buf_idx must be from 0 to {MAX_BUFFERS - 1}")
        return ErrorBuffer()

    def _require_references(self, bound: Container[int]) -> None:
        for slot in self._required_buffers:
            if slot not in bound:
                raise ArgumentError(
                    f"{self.name}: no argument for buffer {slot}, which the kernel declares as a "
                    f"reference: pass a value as argument {slot}"
                )

    def __repr__(self) -> str:
        return f"<metalsim kernel {self.name}>"


def _raise_findings(outcome: Outcome) -> None:
    """Raise what went wrong in a launch, unless findings are being collected."""
    gathered = collected()
    if gathered is not None:
        gathered += outcome.findings
    if outcome.error is not None:
        if outcome.findings:
            outcome.error.add_findings(outcome.findings)
        raise outcome.error
    if outcome.findings and gathered is None:
        raise check_error(outcome.findings)


class ShaderLibrary:
    """The kernels of one program: attributes of this object, listed by `dir`."""

    def __init__(
        self, library: Library, records: Sequence[KernelRecord], checks: int | None
    ) -> None:
        self._library = library
        self._records = {record.name: record for record in records}
        self._checks = checks
        self._kernels: dict[str, Kernel] = {}

    def __getattr__(self, name: str) -> Kernel:
        if name.startswith("__"):
            raise AttributeError(name)
        kernel = self._kernels.get(name)
        if kernel is None:
            record = self._records.get(name)
            if record is None:
                known = ", ".join(self._records) or "none"
                raise KernelNotFoundError(f"no kernel is named {name!r}; this library has {known}")
            kernel = self._kernels[name] = Kernel(self._library, record, self._checks)
        return kernel

    def __dir__(self) -> list[str]:
        return list(self._records)

    def __repr__(self) -> str:
        return f"<metalsim library: {', '.join(self._records)}>"


def compile_shader(
    source: str,
    *,
    check: Check = None,
    profile: bool = False,
    function_constants: Mapping[str | int, FunctionConstant] | None = None,
    include_dirs: Sequence[str | os.PathLike[str]] = (),
    cache_dir: str | os.PathLike[str] | None = None,
    cooperative_layout: str | None = None,
    inactive_lanes: bool = False,
    engine: str = "cpu",
    float_products: str = "fma",
) -> ShaderLibrary:
    """Compile Metal source for this machine: the counterpart of `torch.mps.compile_shader`.

    Args:
        source: Metal Shading Language, ASCII alone as torch demands.
        check: True for a slower build with counters and all checks; or the names of those wanted:
            "races", "bounds", "uninitialized", "alignment", "divergence" (which is always found).
            None reads METALSIM_CHECK: 0, 1 or such names with commas (default: off).
        profile: count by source line too (`Kernel.line_counters`), and the accesses of whole
            simdgroups: 128-byte lines that they touch, bank conflicts. A checking build, slower.
        function_constants: values by the name or index of `T x [[function_constant(index)]]`.
        include_dirs: where `#include` looks, before the headers of an installed torch.
        cache_dir: where compiled libraries are kept; default METALSIM_CACHE_DIR, else the user's
            cache directory.
        cooperative_layout: where the lanes of a simdgroup hold the elements of a cooperative
            tensor, which Metal does not say: "apple10" (M5), "older" (GPUs before it) or
            "random:SEED", whose lanes have empty slots too; None reads
            METALSIM_COOPERATIVE_LAYOUT (default: apple10). Seeds decide as well what else GPUs may
            do differently: under odd ones the layout depends on operand, element type and depth
            too (`is_compatible_as_left_input` is false), under those with bit 1 set
            `mode::multiply` adds to a destination in memory.
        inactive_lanes: let lanes of a simdgroup diverge at its collectives, each of which is then
            one of the lanes that reach it together, as Metal permits; otherwise that is a
            DivergenceError. Barriers and matrices need all lanes in any case. Slower.
        engine: "cpu", or "cuda" for NVIDIA GPUs: no checks, counters, seeds or inactive lanes.
        float_products: 8x8 products of floats on "cuda": "fma" (the CPU's bits) or "3xtf32" (fast).

    Returns:
        The library; `library.name` is the kernel called `name`.

    Raises:
        SyntaxError: all errors, as `program_source:LINE:COLUMN: error: ...`, with the line and
            column of `source`.
        CompilerNotFoundError: no C++ compiler here; the message says what to install.
        ValueError: an engine that is neither, or one asked for what it has not.
    """
    if not isinstance(source, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"compile_shader: source must be a str, not {type(source).__name__}")
    checks, directory = _bits(check, profile), cache.cache_directory(cache_dir)
    build = Build(
        source,
        dict(function_constants or {}),
        read_include_dirs("compile_shader", include_dirs),
        read_layout(cooperative_layout).definitions(),
        directory,
        _engine(engine, checks, inactive_lanes, float_products, directory),
    )
    return ShaderLibrary(*build.library(), checks)


def _engine(
    name: str, checks: int | None, inactive_lanes: bool, float_products: str, directory: Path
) -> Engine:
    if float_products not in FLOAT_PRODUCTS:
        known = ", ".join(FLOAT_PRODUCTS)
        raise ValueError(
            f"compile_shader: float_products must be one of {known}, not {float_products!r}"
        )
    if name == "cpu":
        if float_products != "fma":
            raise ValueError("compile_shader: float_products is for engine='cuda'")
        mode = "fast" if checks is None else "check"
        return CpuEngine(find_compiler(), mode, inactive_lanes, directory)
    if name != "cuda":
        raise ValueError(f"compile_shader: engine must be 'cpu' or 'cuda', not {name!r}")
    if checks is not None:
        raise ValueError(
            "compile_shader: engine='cuda' neither counts nor checks: leave out check, profile and "
            "METALSIM_CHECK, or use `metalsim check --engine cuda`"
        )
    if inactive_lanes:
        raise ValueError(
            "compile_shader: inactive_lanes is for engine='cpu': on a GPU of NVIDIA all lanes that "
            "have not returned must reach a collective together"
        )
    return CudaEngine(float_products)


def _bits(check: Check, profile: bool) -> int | None:
    bits = read_check(check)
    return (bits or 0) | PROFILE if profile else bits
