"""CUDA's driver through ctypes: PTX into modules, kernels onto a stream."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from ..errors import SimulationError
from ..launch import MAX_BUFFERS

_MAX_THREADS_PER_BLOCK, _LOCAL_BYTES, _REGISTERS = 0, 3, 4  # CUfunction_attribute
_MULTIPROCESSORS = 16  # CUdevice_attribute
_JIT_MAX_REGISTERS, _JIT_ERROR_LOG, _JIT_ERROR_LOG_BYTES, _JIT_LINES = 0, 5, 6, 13  # CUjit_option
_REGISTERS_PER_BLOCK = 65536
_LOST = (
    "CUDA ended all work of this process: start a new one. `metalsim check --engine cuda` runs the "
    "kernel under compute-sanitizer and names the line"
)


class LaunchParameters(ctypes.Structure):
    """`metalsim::backend::Launch` of builtins/metalsim/backend_cuda.h."""

    _fields_ = (
        ("buffers", ctypes.c_void_p * MAX_BUFFERS),
        ("failure", ctypes.c_void_p),
        ("grid", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("groups", ctypes.c_uint32 * 3),
        ("threadgroup_bytes", ctypes.c_uint32),
        ("workspace_count", ctypes.c_uint32),
        ("workspaces", ctypes.c_void_p),
        ("workspace_owners", ctypes.c_void_p),
    )


STATE_BYTES = ctypes.sizeof(LaunchParameters) + 40
"""Dynamic shared memory for `metalsim::backend::State`."""


class Usage(NamedTuple):
    """What a kernel takes of a GPU: registers and bytes of local memory of a thread."""

    registers: int
    local_bytes: int


@functools.lru_cache(maxsize=1)
def _driver() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise RuntimeError(
            "metalsim: engine='cuda' needs NVIDIA's driver (libcuda.so.1), which is not here; "
            "compiling works without it, launching does not"
        ) from error
    _check(library, library.cuInit(0), "cuInit")
    return library


def _check(driver: ctypes.CDLL, status: int, what: str, hint: str = "") -> None:
    if status:
        name = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(name))
        message = f"{what}: {(name.value or b'').decode()} ({status})"
        raise SimulationError(f"{message}. {hint}" if hint else message, "cuda")


class Device:
    """One GPU, in the context that torch uses."""

    def __init__(self, index: int) -> None:
        self._driver = _driver()
        self._number = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._number), index)
        self._context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(self._context), self._number)

    def _call(self, name: str, *arguments: object, hint: str = "") -> None:
        _check(self._driver, getattr(self._driver, name)(*arguments), name, hint)

    @contextmanager
    def current(self) -> Generator[None]:
        """This GPU's context for the calls inside the block."""
        self._call("cuCtxPushCurrent_v2", self._context)
        try:
            yield
        finally:
            self._driver.cuCtxPopCurrent_v2(ctypes.byref(ctypes.c_void_p()))

    def load(self, ptx: bytes, max_registers: int | None) -> ctypes.c_void_p:
        """A module of PTX, with line information; `max_registers` of a thread."""
        log = ctypes.create_string_buffer(8192)
        options: list[tuple[int, int | None]] = [
            (_JIT_ERROR_LOG, ctypes.addressof(log)),
            (_JIT_ERROR_LOG_BYTES, len(log)),
            (_JIT_LINES, 1),
        ]
        if max_registers is not None:
            options.append((_JIT_MAX_REGISTERS, max_registers))
        names = (ctypes.c_int * len(options))(*(name for name, _ in options))
        values = (ctypes.c_void_p * len(options))(*(value for _, value in options))
        module = ctypes.c_void_p()
        status = self._driver.cuModuleLoadDataEx(
            ctypes.byref(module), ptx, len(options), names, values
        )
        said = log.value.decode("utf-8", "replace").strip()
        _check(self._driver, status, "the driver does not take this PTX", said)
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """A kernel of a module."""
        function = ctypes.c_void_p()
        self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def _attribute(self, function: ctypes.c_void_p, attribute: int) -> int:
        value = ctypes.c_int()
        self._call("cuFuncGetAttribute", ctypes.byref(value), attribute, function)
        return value.value

    def max_threads(self, function: ctypes.c_void_p) -> int:
        """Threads that a block of this kernel may have, by its registers."""
        return self._attribute(function, _MAX_THREADS_PER_BLOCK)

    def usage(self, function: ctypes.c_void_p) -> Usage:
        """Registers and local memory of a thread."""
        return Usage(self._attribute(function, _REGISTERS), self._attribute(function, _LOCAL_BYTES))

    def resident_blocks(self, function: ctypes.c_void_p, threads: int) -> int:
        """The most blocks of `threads` that run at a time."""
        each, processors = ctypes.c_int(), ctypes.c_int()
        self._call(
            "cuOccupancyMaxActiveBlocksPerMultiprocessor",
            *(ctypes.byref(each), function, threads, ctypes.c_size_t(STATE_BYTES)),
        )
        attribute = _MULTIPROCESSORS
        self._call("cuDeviceGetAttribute", ctypes.byref(processors), attribute, self._number)
        return each.value * processors.value

    def launch(
        self,
        function: ctypes.c_void_p,
        blocks: int,
        threads: int,
        stream: int,
        parameters: LaunchParameters,
    ) -> None:
        """Run `blocks` of `threads` to their end."""
        pointers = (ctypes.c_void_p * 1)(ctypes.addressof(parameters))
        one = ctypes.c_uint(1)
        self._call(
            "cuLaunchKernel",
            function,
            *(ctypes.c_uint(blocks), one, one, ctypes.c_uint(threads), one, one),
            ctypes.c_uint(STATE_BYTES),
            ctypes.c_void_p(stream),
            pointers,
            None,
        )
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream), hint=_LOST)


def registers_for(threads: int) -> int:
    """The registers that each of `threads` of a block can have."""
    return min(255, _REGISTERS_PER_BLOCK // threads // 8 * 8)


@functools.lru_cache(maxsize=64)
def device(index: int) -> Device:
    """GPU number `index`, opened once."""
    return Device(index)


def counts(axes: Sequence[int]) -> list[int]:
    """Sizes in three dimensions."""
    return [*axes, 1, 1][:3]
