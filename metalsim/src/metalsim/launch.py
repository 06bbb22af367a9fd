"""The machine's C interface (machine/abi.h) through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from . import machine
from .errors import SimulationError, simulation_error
from .findings import Access, Finding, Position, merge
from .lines import LineTable
from .profile import MAX_COUNTERS, LineCounters, by_line, instruction_counters
from .schedule import current_schedule

MAX_BUFFERS = 31
_FINDINGS = 1024
_KINDS = {1: "race", 2: "bounds", 4: "uninitialized", 8: "alignment"}
_SPACES = ("device", "constant", "threadgroup", "thread", "")
_ACTIONS = ("read", "write", "atomic", "use")
_NO_ITEM = 0xFFFFFFFF


class Buffer(NamedTuple):
    """Memory for one buffer slot; `owner` keeps it alive during the launch. `items` is what the
    addresses in it lead to; `initialized` the address of a bit a byte, 0: all is. `gpu` is the
    number of the GPU whose memory it is, None: the host's, of which `read_back` says that the
    caller reads what the kernel left there."""

    address: int
    size: int
    owner: object
    items: Sequence[Buffer] = ()
    initialized: int = 0
    gpu: int | None = None
    read_back: bool = False


class KernelRecord(NamedTuple):
    """What the cache keeps of a kernel."""

    name: str
    number: int
    max_threads: int
    writable: Sequence[int]
    threadgroup_bytes: int
    """Of its threadgroup variables."""
    required: Sequence[int] = ()
    """The slots that every launch must bind."""
    group: Sequence[int] = ()
    """The only size of a threadgroup that it takes, in three dimensions; empty: any."""


class Request(NamedTuple):
    """One launch: the grid in threads, threads a group, memory by slot, the bits of its checks."""

    kernel: str
    threads: Sequence[int]
    group: Sequence[int]
    buffers: Mapping[int, Buffer]
    checks: int


class Outcome(NamedTuple):
    """What a launch left behind; `error` is what ended it early."""

    counters: dict[str, int]
    findings: tuple[Finding, ...]
    error: SimulationError | None
    lines: tuple[LineCounters, ...] = ()


class Library(Protocol):
    """A compiled program that an engine runs."""

    @property
    def device(self) -> str:
        """The type of torch device that its tensors are on."""
        ...

    def entry(self, number: int) -> int:
        """What `run` takes for kernel `number`."""
        ...

    def run(self, entry: int, request: Request) -> Outcome:
        """One launch, to its end."""
        ...


class _Extent(ctypes.Structure):
    _fields_ = (
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_uint64),
        ("buffer", ctypes.c_uint32),
        ("item", ctypes.c_uint32),
    )


class _Access(ctypes.Structure):
    _fields_ = (
        ("code", ctypes.c_uint64),
        ("action", ctypes.c_uint32),
        ("thread", ctypes.c_uint32 * 3),
        ("threadgroup", ctypes.c_uint32 * 3),
    )


class _Finding(ctypes.Structure):
    _fields_ = (
        ("kind", ctypes.c_uint32),
        ("space", ctypes.c_uint32),
        ("buffer", ctypes.c_uint32),
        ("item", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("offset", ctypes.c_int64),
        ("extent", ctypes.c_uint64),
        ("size", ctypes.c_uint32),
        ("alignment", ctypes.c_uint32),
        ("has_other", ctypes.c_uint32),
        ("count", ctypes.c_uint64),
        ("access", _Access),
        ("other", _Access),
    )


class _Entry(ctypes.Structure):
    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("buffers", ctypes.c_uint32),
        ("constant_buffers", ctypes.c_uint32),
        ("reference_buffers", ctypes.c_uint32),
        ("body", ctypes.CFUNCTYPE(None)),
        ("threadgroup_bytes", ctypes.CFUNCTYPE(ctypes.c_uint32)),
    )


class _Launch(ctypes.Structure):
    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("threads", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("buffers", ctypes.c_void_p * MAX_BUFFERS),
        ("buffer_bytes", ctypes.c_uint64 * MAX_BUFFERS),
        ("extents", ctypes.c_void_p),
        ("extent_count", ctypes.c_uint32),
        ("checks", ctypes.c_uint32),
        ("initialized", ctypes.c_void_p * MAX_BUFFERS),
        ("findings", ctypes.c_void_p),
        ("finding_capacity", ctypes.c_uint32),
        ("line_capacity", ctypes.c_uint32),
        ("lines", ctypes.c_void_p),
        ("counters", ctypes.c_uint64 * MAX_COUNTERS),
        ("finding_count", ctypes.c_uint32),
        ("line_count", ctypes.c_uint32),
        ("error", ctypes.c_char * 8192),
        ("error_kind", ctypes.c_char * 32),
    )


class LoadedLibrary:
    """A kernel library and the machine it runs on, loaded into this process."""

    device = "cpu"

    def __init__(self, kernels: Path) -> None:
        # The machine is reached through the kernels' own link to it: another copy of it, from
        # another cache directory, may be loaded under the same name.
        self._path = kernels
        self._kernels = ctypes.CDLL(str(kernels))
        self._run = self._kernels.metalsim_run
        self._run.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Launch))
        self._run.restype = ctypes.c_int
        self._kernels.metalsim_counter_name.restype = ctypes.c_char_p
        self._counter_names = self._read_counter_names()

    def entry(self, number: int) -> int:
        """The address of kernel `number`'s entry."""
        return ctypes.addressof(self._entry(number))

    def threadgroup_bytes(self, number: int) -> int:
        """The bytes of kernel `number`'s threadgroup variables."""
        return int(self._entry(number).threadgroup_bytes())

    def _entry(self, number: int) -> _Entry:
        return _Entry.in_dll(self._kernels, f"metalsim_entry_{number}")

    def _read_counter_names(self) -> list[str]:
        names = list[str]()
        while (name := self._kernels.metalsim_counter_name(len(names))) is not None:
            names.append(name.decode())
        return names

    def run(self, entry: int, request: Request) -> Outcome:
        """One launch, to its end."""
        chosen = current_schedule()
        launch = _Launch(abi_version=machine.ABI_VERSION, workers=chosen.workers, seed=chosen.seed)
        for axis in range(3):
            launch.threads[axis] = request.threads[axis] if axis < len(request.threads) else 1
            launch.group[axis] = request.group[axis] if axis < len(request.group) else 1
        for index, buffer in request.buffers.items():
            launch.buffers[index] = buffer.address
            launch.buffer_bytes[index] = buffer.size
            launch.initialized[index] = buffer.initialized or None
        launch.checks = request.checks
        found = (_Finding * (_FINDINGS if request.checks else 0))()
        launch.findings, launch.finding_capacity = ctypes.addressof(found), len(found)
        extents = _extents(request.buffers)
        launch.extents, launch.extent_count = ctypes.addressof(extents), len(extents)
        instructions = instruction_counters(request.checks)
        launch.lines, launch.line_capacity = ctypes.addressof(instructions), len(instructions)
        status = self._run(entry, ctypes.byref(launch))
        counters = {
            name: int(launch.counters[index]) for index, name in enumerate(self._counter_names)
        }
        findings = merge(
            self._finding(request.kernel, found[index]) for index in range(launch.finding_count)
        )
        error = self._error(launch) if status else None
        lines = by_line(
            instructions[: launch.line_count], LineTable.read(self._path), self._counter_names
        )
        return Outcome(counters, findings, error, lines)

    @staticmethod
    def _error(launch: _Launch) -> SimulationError:
        message = bytes(launch.error).decode("utf-8", "replace")
        return simulation_error(bytes(launch.error_kind).decode(), message)

    def _finding(self, kernel: str, found: _Finding) -> Finding:
        access = self._access(found.access)
        return Finding(
            kind=_KINDS[found.kind],
            space=_SPACES[found.space],
            kernel=kernel,
            variable=_variable(found),
            offset=int(found.offset),
            size=int(found.size),
            **access._asdict(),
            other=self._access(found.other) if found.has_other else None,
            count=int(found.count),
            extent=int(found.extent),
            alignment=int(found.alignment),
        )

    def _access(self, access: _Access) -> Access:
        location = LineTable.read(self._path).locate(int(access.code)) if access.code else None
        return Access(
            _ACTIONS[access.action],
            location.file if location else "",
            location.line if location else 0,
            _position(access.thread),
            _position(access.threadgroup),
        )


def _position(axes: ctypes.Array[ctypes.c_uint32]) -> Position:
    return axes[0], axes[1], axes[2]


def _variable(found: _Finding) -> str:
    if found.name is not None:
        return bytes(found.name).decode()
    if not _SPACES[found.space]:
        return ""
    item = "" if found.item == _NO_ITEM else f", item {found.item}"
    return f"buffer {found.buffer}{item}"


def _extents(buffers: Mapping[int, Buffer]) -> ctypes.Array[_Extent]:
    extents = [
        _Extent(item.address, item.size, slot, number)
        for slot, buffer in buffers.items()
        for number, item in enumerate(buffer.items)
    ]
    return (_Extent * len(extents))(*extents)
