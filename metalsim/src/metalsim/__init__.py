"""metalsim runs Metal Shading Language on the CPU, with the contract of
torch.mps.compile_shader."""

from __future__ import annotations

from .errors import (
    ArgumentError,
    BoundsError,
    CompilerNotFoundError,
    DivergenceError,
    KernelNotFoundError,
    KernelReportedError,
    SimulationError,
    ThreadgroupMemoryError,
)
from .library import Kernel, ShaderLibrary, compile_shader
from .schedule import Schedule, schedule

__all__ = [
    "ArgumentError",
    "BoundsError",
    "CompilerNotFoundError",
    "DivergenceError",
    "Kernel",
    "KernelNotFoundError",
    "KernelReportedError",
    "Schedule",
    "ShaderLibrary",
    "SimulationError",
    "ThreadgroupMemoryError",
    "compile_shader",
    "schedule",
]
