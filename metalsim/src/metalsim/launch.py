"""The machine's C interface (machine/abi.h) through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from . import machine
from .errors import SimulationError, simulation_error
from .schedule import current_schedule

MAX_BUFFERS = 31
_COUNTERS = 64


class Buffer(NamedTuple):
    """Memory for one buffer slot; `owner` keeps it alive during the launch."""

    address: int
    size: int
    owner: object


class Outcome(NamedTuple):
    """What a launch left behind."""

    counters: dict[str, int]
    threadgroup_bytes: int


class _Launch(ctypes.Structure):
    _fields_ = (
        ("abi_version", ctypes.c_uint32),
        ("workers", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("threads", ctypes.c_uint32 * 3),
        ("group", ctypes.c_uint32 * 3),
        ("buffers", ctypes.c_void_p * MAX_BUFFERS),
        ("buffer_bytes", ctypes.c_uint64 * MAX_BUFFERS),
        ("counters", ctypes.c_uint64 * _COUNTERS),
        ("threadgroup_bytes", ctypes.c_uint32),
        ("error", ctypes.c_char * 8192),
        ("error_kind", ctypes.c_char * 32),
    )


class LoadedLibrary:
    """A kernel library and the machine it runs on, loaded into this process."""

    def __init__(self, kernels: Path) -> None:
        # The machine is reached through the kernels' own link to it: another copy of it, from
        # another cache directory, may be loaded under the same name.
        self._kernels = ctypes.CDLL(str(kernels))
        self._run = self._kernels.metalsim_run
        self._run.argtypes = (ctypes.c_void_p, ctypes.POINTER(_Launch))
        self._run.restype = ctypes.c_int
        self._kernels.metalsim_counter_name.restype = ctypes.c_char_p
        self._counter_names = self._read_counter_names()

    def entry(self, number: int) -> int:
        """The address of kernel `number`'s entry."""
        return ctypes.addressof(ctypes.c_uint32.in_dll(self._kernels, f"metalsim_entry_{number}"))

    def _read_counter_names(self) -> list[str]:
        names = list[str]()
        while (name := self._kernels.metalsim_counter_name(len(names))) is not None:
            names.append(name.decode())
        return names

    def run(
        self, entry: int, threads: Sequence[int], group: Sequence[int], buffers: dict[int, Buffer]
    ) -> Outcome:
        """One launch, to its end. Raises SimulationError, or a subclass, for what goes wrong in
        it."""
        chosen = current_schedule()
        launch = _Launch(abi_version=machine.ABI_VERSION, workers=chosen.workers, seed=chosen.seed)
        for axis in range(3):
            launch.threads[axis] = threads[axis] if axis < len(threads) else 1
            launch.group[axis] = group[axis] if axis < len(group) else 1
        for index, buffer in buffers.items():
            launch.buffers[index] = buffer.address
            launch.buffer_bytes[index] = buffer.size
        status = self._run(entry, ctypes.byref(launch))
        if status:
            raise self._error(launch)
        counters = {
            name: int(launch.counters[index]) for index, name in enumerate(self._counter_names)
        }
        return Outcome(counters, int(launch.threadgroup_bytes))

    @staticmethod
    def _error(launch: _Launch) -> SimulationError:
        message = bytes(launch.error).decode("utf-8", "replace")
        return simulation_error(bytes(launch.error_kind).decode(), message)
