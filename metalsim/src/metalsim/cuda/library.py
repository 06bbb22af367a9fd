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
from .ptx import workspace_bytes

_WARP = 32
_MAX_BLOCKS = 2**31 - 1
_MAX_THREADGROUP_BYTES = 32768
_FAILURES = {
    1: "an operation on matrices at line {line} needs a full simdgroup of 32 threads, but "
    "simdgroup {simdgroup} has fewer, or some have returned from the kernel",
    2: "an operation of execution_simdgroups at line {line} has another number of simdgroups than "
    "the threadgroup",
}


class PtxLibrary:
    """A program's PTX; each GPU's modules are loaded at their first launch."""

    device = "cuda"

    def __init__(self, path: Path, threadgroup_bytes: Mapping[int, int]) -> None:
        self._ptx = path.read_bytes() + b"\0"
        self._workspace_bytes = workspace_bytes(self._ptx.decode("ascii"))
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
        threads = -(-math.prod(request.group) // _WARP) * _WARP
        groups = _groups(request)
        with torch.cuda.stream(stream), device(gpu).current():
            function = self._function(gpu, entry, threads)
            values = _Values(request.buffers, gpu)
            failure = torch.zeros(4, dtype=torch.int32, pin_memory=True)
            parameters = LaunchParameters(
                failure=failure.data_ptr(),
                grid=_axes(request.threads),
                group=_axes(request.group),
                groups=_axes(groups),
                threadgroup_bytes=needed,
            )
            parameters.buffers[:] = values.addresses
            workspace = self._workspace(gpu, function, math.prod(groups), threads)
            if workspace is not None:
                owners, memory = workspace
                parameters.workspace_count = len(owners)
                parameters.workspace_owners = owners.data_ptr()
                parameters.workspaces = memory.data_ptr()
            blocks = math.prod(groups)
            device(gpu).launch(function, blocks, threads, stream.cuda_stream, parameters)
            values.copy_back()
        return Outcome({}, (), _failure(request.kernel, [int(word) for word in failure]))

    def _workspace(
        self, gpu: int, function: ctypes.c_void_p, blocks: int, threads: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Who owns the workspaces of tensor operations, and these; None without such operations."""
        if not self._workspace_bytes:
            return None
        count = min(blocks, device(gpu).resident_blocks(function, threads))
        size = count * threads // _WARP * self._workspace_bytes
        owners = torch.zeros(count, dtype=torch.int32, device=gpu)
        return owners, torch.empty(size, dtype=torch.uint8, device=gpu)

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
    """The buffers of a launch in the GPU's memory: tensors as they are, all else as copies, each in
    memory of its own so that compute-sanitizer knows where it ends."""

    def __init__(self, buffers: Mapping[int, Buffer], gpu: int) -> None:
        self._copies = list[tuple[Buffer, torch.Tensor]]()
        self.addresses = [_zeros(gpu).data_ptr()] * MAX_BUFFERS
        for slot, buffer in buffers.items():
            if not buffer.size:
                continue
            if buffer.gpu is not None:
                self.addresses[slot] = buffer.address
                continue
            content = bytearray(ctypes.string_at(buffer.address, buffer.size))
            copy = torch.frombuffer(content, dtype=torch.uint8).to(gpu)
            self._copies.append((buffer, copy))
            self.addresses[slot] = copy.data_ptr()

    def copy_back(self) -> None:
        """What the kernel wrote to memory of the host whose owner reads it."""
        for buffer, copy in self._copies:
            if buffer.read_back:
                host = copy.cpu()
                ctypes.memmove(buffer.address, host.data_ptr(), buffer.size)


def _axes(sizes: Sequence[int]) -> ctypes.Array[ctypes.c_uint32]:
    return (ctypes.c_uint32 * 3)(*counts(sizes))


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
