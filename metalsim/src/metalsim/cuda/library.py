"""Kernels of one program as PTX, loaded and launched on the GPU where their tensors are."""

from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ..errors import SimulationError, ThreadgroupMemoryError
from ..launch import MAX_BUFFERS, Buffer, Outcome, Request
from .driver import Device, LaunchParameters, Usage, counts, device, registers_for

_WARP = 32
_MAX_BLOCKS = 2**31 - 1
_MAX_THREADGROUP_BYTES = 32768
_ALIGNMENT = 16
_FAILURES = {
    1: "a matrix product at line {line} needs a full simdgroup of 32 threads, but simdgroup "
    "{simdgroup} has fewer, or some have returned from the kernel",
}


class PtxLibrary:
    """A program's PTX; each GPU's modules are loaded at their first launch."""

    device = "cuda"

    def __init__(self, path: Path, threadgroup_bytes: Mapping[int, int]) -> None:
        self._ptx = path.read_bytes() + b"\0"
        self._threadgroup_bytes = threadgroup_bytes
        self._modules: dict[tuple[int, int | None], ctypes.c_void_p] = {}
        self._functions: dict[tuple[int, int, int], ctypes.c_void_p] = {}

    def entry(self, number: int) -> int:
        """What `run` takes for kernel `number`."""
        return number

    def run(self, entry: int, request: Request) -> Outcome:
        """One launch, to its end, on the stream that is torch's current one."""
        needed = self._threadgroup_bytes.get(entry, 0)
        if needed > _MAX_THREADGROUP_BYTES:
            raise ThreadgroupMemoryError(
                f"{request.kernel}: the threadgroup variables take {needed} bytes; Metal has "
                f"{_MAX_THREADGROUP_BYTES}",
                "threadgroup_memory",
            )
        gpu = _gpu_of(request)
        stream = torch.cuda.current_stream(gpu)
        with torch.cuda.stream(stream), device(gpu).current():
            values = _Values(request.buffers, gpu)
            failure = torch.zeros(4, dtype=torch.int32, pin_memory=True)
            parameters = LaunchParameters(
                failure=failure.data_ptr(),
                grid=(ctypes.c_uint32 * 3)(*counts(request.threads)),
                group=(ctypes.c_uint32 * 3)(*counts(request.group)),
                groups=(ctypes.c_uint32 * 3)(*_groups(request)),
                threadgroup_bytes=needed,
            )
            parameters.buffers[:] = values.addresses
            threads = -(-math.prod(request.group) // _WARP) * _WARP
            function = self._function(gpu, entry, threads)
            blocks = math.prod(_groups(request))
            device(gpu).launch(function, blocks, threads, stream.cuda_stream, parameters)
            values.copy_back()
        return Outcome({}, needed, (), _failure(request.kernel, [int(word) for word in failure]))

    def usage(self, number: int, threads: int = 1024, gpu: int = 0) -> Usage:
        """Registers and local memory of kernel `number` for threadgroups of `threads`."""
        with device(gpu).current():
            return device(gpu).usage(self._function(gpu, number, threads))

    def _function(self, gpu: int, number: int, threads: int) -> ctypes.c_void_p:
        """The kernel, compiled so that a block of `threads` has registers enough."""
        key = (gpu, number, threads)
        if key not in self._functions:
            name, opened = f"metalsim_entry_{number}", device(gpu)
            function = opened.function(self._module(opened, gpu, None), name)
            if opened.max_threads(function) < threads:
                limited = self._module(opened, gpu, registers_for(threads))
                function = opened.function(limited, name)
            self._functions[key] = function
        return self._functions[key]

    def _module(self, opened: Device, gpu: int, max_registers: int | None) -> ctypes.c_void_p:
        key = (gpu, max_registers)
        if key not in self._modules:
            self._modules[key] = opened.load(self._ptx, max_registers)
        return self._modules[key]


@functools.lru_cache(maxsize=64)
def _zeros(gpu: int) -> torch.Tensor:
    """What stands in for buffers that are not bound: compilers may read through a reference before
    the branch that guards it."""
    return torch.zeros(65536, dtype=torch.uint8, device=gpu)


class _Values:
    """The buffers of a launch in the GPU's memory: tensors as they are, numbers and lists copied
    there in one piece."""

    def __init__(self, buffers: Mapping[int, Buffer], gpu: int) -> None:
        self._copied = list[tuple[Buffer, int]]()
        self.addresses = [_zeros(gpu).data_ptr()] * MAX_BUFFERS
        content = bytearray()
        for slot, buffer in buffers.items():
            if buffer.gpu is not None:
                if buffer.size:
                    self.addresses[slot] = buffer.address
                continue
            content += bytes(-len(content) % _ALIGNMENT)
            self._copied.append((buffer, len(content)))
            self.addresses[slot] = len(content)
            content += ctypes.string_at(buffer.address, buffer.size)
        if content:
            self._memory = torch.frombuffer(content, dtype=torch.uint8).to(gpu)
        for slot, buffer in buffers.items():
            if buffer.gpu is None:
                self.addresses[slot] += self._memory.data_ptr()

    def copy_back(self) -> None:
        """What the kernel wrote to memory of the host whose owner reads it."""
        for buffer, offset in self._copied:
            if buffer.read_back:
                host = self._memory[offset : offset + buffer.size].cpu()
                ctypes.memmove(buffer.address, host.data_ptr(), buffer.size)


def _gpu_of(request: Request) -> int:
    """The one GPU that all tensors are on; without tensors torch's current one."""
    gpus = {item.gpu for buffer in request.buffers.values() for item in (buffer, *buffer.items)}
    gpus.discard(None)
    if len(gpus) > 1:
        raise RuntimeError(
            f"{request.kernel}: the tensors are on several GPUs: {sorted(map(str, gpus))}"
        )
    index = next(iter(gpus), None)
    return torch.cuda.current_device() if index is None else index


def _groups(request: Request) -> Sequence[int]:
    groups = [
        -(-threads // group)
        for threads, group in zip(counts(request.threads), counts(request.group), strict=True)
    ]
    if math.prod(groups) > _MAX_BLOCKS:
        raise RuntimeError(
            f"{request.kernel}: {math.prod(groups)} threadgroups; CUDA launches {_MAX_BLOCKS}"
        )
    return groups


def _failure(kernel: str, words: Sequence[int]) -> SimulationError | None:
    if not words[0]:
        return None
    message = _FAILURES[words[0]].format(line=words[1], simdgroup=words[2])
    return SimulationError(f"{kernel}: {message}", "simdgroup")
