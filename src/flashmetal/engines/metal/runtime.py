"""The seam to a Metal compiler: Apple's on a Mac, a simulator anywhere else.

A :class:`Runtime` is given ``compile_shader``, the contract of ``torch.mps.compile_shader``. On MPS
it is torch's own; tests and the demo pass a simulator's with :func:`metal_runtime`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch

from ...cache.append import CacheAppend
from ...problem import AttentionProblem
from ...settings import settings
from .gpu import Gpu
from .machine_files import machine_file, machine_name
from .measured import read_rows
from .tiles import Row
from .trust import SetAside, Trust
from .variant import MSL_TYPES, Variant, render

_given: dict[str, Runtime] = {}  # by device type; only metal_runtime writes it


class Runtime:
    """Compiles kernel variants and keeps them.

    ``compile_shader(source)`` returns a library whose attributes are kernels, as
    ``torch.mps.compile_shader`` does. ``device`` is the type of device the kernels' tensors are on.
    ``has_tensor_operations`` says whether it compiles Metal 4. ``trust`` makes each variant prove
    itself at its first use; without one all are trusted. ``measured_rows`` are tiles that were the
    fastest on this machine.
    """

    def __init__(
        self,
        compile_shader: Callable[[str], Any],
        device: str,
        gpu: Gpu,
        has_tensor_operations: bool = True,
        trust: Trust | None = None,
        measured_rows: tuple[Row, ...] = (),
    ) -> None:
        self.device = device
        self.gpu = gpu
        self.has_tensor_operations = has_tensor_operations
        self.measured_rows = measured_rows
        self._trust = trust
        # (problem, kernel): why
        self.set_aside: dict[tuple[AttentionProblem | CacheAppend, str], str] = {}
        self._compile_shader = compile_shader
        self._kernels: dict[Variant, Callable[..., None]] = {}

    def require(
        self, variants: tuple[Variant, ...], prove: Callable[[], None], forget: Callable[[], None]
    ) -> None:
        """Raise :class:`.trust.SetAside` where this machine does not run the variants rightly.

        ``forget`` then drops the launches kept: the one of a proof may be that of a user's call.
        """
        if self._trust is None:
            return
        try:
            self._trust.require(variants, prove)
        except SetAside:
            forget()
            raise

    def kernel(self, variant: Variant) -> Callable[..., None]:
        """The compiled kernel of ``variant``, compiled at its first use."""
        kernel = self._kernels.get(variant)
        if kernel is None:
            library = self._compile_shader(render(variant))
            kernel = self._kernels[variant] = getattr(library, variant.kernel)
        return kernel


@contextmanager
def metal_runtime(runtime: Runtime) -> Generator[Runtime]:
    """Let ``runtime`` serve ``impl="metal"`` for tensors on ``runtime.device`` inside the block."""
    before = _given.get(runtime.device)
    _given[runtime.device] = runtime
    try:
        yield runtime
    finally:
        if before is None:
            del _given[runtime.device]
        else:
            _given[runtime.device] = before


def runtime_for(device: str) -> Runtime | None:
    """The runtime that serves tensors on this device type, or None."""
    given = _given.get(device)
    if given is None and device == "mps":
        return _apple_runtime()
    return given


def refuse_tensors(device: str, dtype: torch.dtype) -> str | None:
    """Why no Metal kernel takes tensors of a device type and dtype, in words; None if some do."""
    if runtime_for(device) is None:
        return f"no Metal runtime serves {device} tensors on this machine"
    if dtype not in MSL_TYPES:
        return f"the Metal kernels take float32, float16 and bfloat16, not {dtype}"
    return None


@lru_cache(maxsize=1)
def _apple_runtime() -> Runtime | None:
    if not torch.backends.mps.is_available():
        return None
    # compile_shader asks for Metal 4 from torch 2.11 on; torch itself trusts macOS from 26.2 on.
    release = tuple(int(part) for part in torch.__version__.split(".")[:2])
    is_new = release >= (2, 11) and torch.backends.mps.is_macos_or_newer(26, 2)
    gpu = Gpu.current()
    trust = Trust(machine_file("verdicts", gpu.name)) if settings().verify else None
    rows = read_rows(machine_file("tiles", gpu.name), machine_name(gpu.name))
    return Runtime(torch.mps.compile_shader, "mps", gpu, is_new, trust, rows)
