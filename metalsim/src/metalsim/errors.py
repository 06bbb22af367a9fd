"""What can go wrong: source that does not compile, arguments, and kernels that misbehave while
they run."""

from __future__ import annotations

from collections.abc import Sequence

from .findings import Finding

PROGRAM_SOURCE = "program_source"
"""The name that Metal gives to a source string in its errors."""


class SimulationError(RuntimeError):
    """A kernel did something wrong while it ran. `kind` is the machine's word for it."""

    def __init__(self, message: str, kind: str = "launch") -> None:
        super().__init__(message)
        self.kind = kind

    def add_findings(self, findings: Sequence[Finding]) -> None:
        """Say what the checkers found before this ended the launch."""
        self.args = (f"{self}\nfound before that:\n{list_findings(findings)}",)


class DivergenceError(SimulationError):
    """A barrier or a simdgroup collective was not reached by every thread that takes part in it."""


class CheckError(SimulationError):
    """A launch of a checking build ran to its end, with findings."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        kinds = {finding.kind for finding in findings}
        super().__init__(list_findings(findings), kinds.pop() if len(kinds) == 1 else "check")
        self.findings = tuple(findings)


class BoundsError(CheckError):
    """Accesses outside their buffers or variables, and no other findings."""


class ThreadgroupMemoryError(SimulationError):
    """The threadgroup variables of a kernel take more than 32 KB."""


class KernelReportedError(SimulationError):
    """The kernel wrote a message of its own into the buffer that `error_buf_idx` names."""


class ArgumentError(TypeError, RuntimeError):
    """An argument of a type that torch refuses: torch raises RuntimeError, Python's habit is
    TypeError."""


class KernelNotFoundError(AttributeError, RuntimeError):
    """A library has no kernel of this name: torch raises RuntimeError, Python's habit is
    AttributeError."""


class CompilerNotFoundError(RuntimeError):
    """No C++ compiler on this machine."""


_BY_KIND: dict[str, type[SimulationError]] = {
    "divergence": DivergenceError,
    "threadgroup_memory": ThreadgroupMemoryError,
    "kernel": KernelReportedError,
}


_LISTED = 10


def list_findings(findings: Sequence[Finding]) -> str:
    """One finding a line, the first few of them."""
    lines = [str(finding) for finding in findings[:_LISTED]]
    if len(findings) > _LISTED:
        lines.append(f"and {len(findings) - _LISTED} more findings")
    return "\n".join(lines)


def check_error(findings: Sequence[Finding]) -> CheckError:
    """The exception for a launch with these findings."""
    is_bounds = all(finding.kind == "bounds" for finding in findings)
    return (BoundsError if is_bounds else CheckError)(findings)


def simulation_error(kind: str, message: str) -> SimulationError:
    """The exception for the machine's `kind`; a kind without a class of its own is a
    SimulationError."""
    return _BY_KIND.get(kind, SimulationError)(message, kind)


def source_error(source: str, line: int, column: int, message: str) -> SyntaxError:
    """`source:line:column: error: message` as a SyntaxError; its `text` is set once the whole
    source is at hand."""
    located = f"{source}:{line}:{column}: error: {message}"
    return SyntaxError(located, (source, line, column, None))
