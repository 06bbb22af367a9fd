"""metalsim runs Metal Shading Language on the CPU, with the contract of
torch.mps.compile_shader."""

from __future__ import annotations

from .arguments import Fresh
from .errors import (
    ArgumentError,
    BoundsError,
    CheckError,
    CompilerNotFoundError,
    DivergenceError,
    KernelNotFoundError,
    KernelReportedError,
    SimulationError,
    ThreadgroupMemoryError,
)
from .findings import Access, Finding, collect_findings
from .library import Kernel, ShaderLibrary, compile_shader
from .linter import LintFinding, lint
from .schedule import Schedule, schedule

__all__ = [
    "Access",
    "ArgumentError",
    "BoundsError",
    "CheckError",
    "CompilerNotFoundError",
    "DivergenceError",
    "Finding",
    "Fresh",
    "Kernel",
    "KernelNotFoundError",
    "KernelReportedError",
    "LintFinding",
    "Schedule",
    "ShaderLibrary",
    "SimulationError",
    "ThreadgroupMemoryError",
    "collect_findings",
    "compile_shader",
    "lint",
    "schedule",
]
