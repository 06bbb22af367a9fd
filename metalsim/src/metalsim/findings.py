"""What the checkers found in a launch: `Finding`, and how a caller gathers them."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

Position = tuple[int, int, int]

_GROUPS_ADVICE = (
    "threadgroups run in no order: give each its own part of the memory, use atomics, or split the "
    "work into two launches"
)


class Access(NamedTuple):
    """One side of a race."""

    access: str
    """ "read", "write" or "atomic"; "use" where it is not known which."""
    file: str
    """As the compiler's errors name it: "program_source", or the path of an included file; "" where
    it is not known."""
    line: int
    thread: Position
    """In its threadgroup."""
    threadgroup: Position


class Finding(NamedTuple):
    """Something a checker found: where, by whom, and what to do (`str(finding)`)."""

    kind: str
    """ "race", "bounds", "uninitialized" or "alignment"."""
    space: str
    """The address space: "device", "constant", "threadgroup" or "thread"; "" for an address near no
    memory of the kernel."""
    kernel: str
    variable: str
    """A variable's name, or "buffer 3", or "buffer 3, item 2" for a list of tensors; the type of
    an array of which no more than the index is known."""
    offset: int
    """Bytes from where the variable or buffer begins to the first byte of the access; or that
    index."""
    size: int
    """Bytes of the access."""
    access: str
    file: str
    line: int
    thread: Position
    threadgroup: Position
    other: Access | None
    """The earlier access of a race."""
    count: int  # pyright: ignore[reportIncompatibleMethodOverride]
    """How often; the rest describes the first time."""
    extent: int = 0
    """Bytes of the variable or buffer; 0 for a buffer that is not bound."""
    alignment: int = 0
    """That the access needs, for kind "alignment"."""

    def __str__(self) -> str:
        texts = {
            "race": _race,
            "bounds": _bounds,
            "uninitialized": _uninitialized,
            "alignment": _alignment,
        }
        again = f" ({self.count} times)" if self.count > 1 else ""
        where = f"{_place(self.file, self.line)}: kernel {self.kernel}"
        return f"{where}: {texts[self.kind](self)}{again}"

    @property
    def memory(self) -> str:
        """The variable or buffer in words."""
        if self.variable.startswith("buffer ") or not self.variable:
            return self.variable or "memory that is not the kernel's"
        return f"{self.space} variable {self.variable}"


def _place(file: str, line: int) -> str:
    return f"{file}:{line}" if file else "unknown line"


def _who(access: Finding | Access) -> str:
    return f"thread {access.thread} of threadgroup {access.threadgroup}"


def _what(finding: Finding) -> str:
    noun = "atomic operation" if finding.access == "atomic" else finding.access
    return f"{noun} of {finding.size} byte{'' if finding.size == 1 else 's'}"


def _race(finding: Finding) -> str:
    other = finding.other
    assert other is not None
    verb = {"read": "read", "write": "wrote", "atomic": "updated"}[other.access]
    same_group = other.threadgroup == finding.threadgroup
    whose = f"thread {other.thread}" if same_group else _who(other)
    at = f"line {other.line}" if other.file == finding.file else _place(other.file, other.line)
    if other.line == finding.line and other.file == finding.file:
        at = "this line too"
    return (
        f"race: {_what(finding)} at byte {finding.offset} of {finding.memory} by {_who(finding)}, "
        f"which {whose} {verb} at {at}; {_order(finding, other, same_group)}"
    )


def _order(finding: Finding, other: Access, same_group: bool) -> str:
    if not same_group:
        return _GROUPS_ADVICE
    if "atomic" in (finding.access, other.access):
        return "nothing orders them: make both atomic, or put a barrier between them"
    flag = "mem_threadgroup" if finding.space == "threadgroup" else "mem_device"
    if other.line == finding.line and finding.access == other.access == "write":
        return "let one thread write it, or give each thread its own place"
    return f"no barrier orders them: put threadgroup_barrier(mem_flags::{flag}) between them"


def _bounds(finding: Finding) -> str:
    if finding.access == "use":
        return (
            f"out of bounds: index {finding.offset} of an array of type {finding.variable}, by "
            f"{_who(finding)} (the thread was ended here)"
        )
    if not finding.variable:
        return f"out of bounds: {_what(finding)} near no memory of the kernel, by {_who(finding)}"
    if not finding.extent:
        return (
            f"out of bounds: {_what(finding)} through {finding.variable}, which is not bound, by "
            f"{_who(finding)}; pass it an argument"
        )
    if finding.offset < 0:
        where = f"{-finding.offset} bytes in front of {finding.memory}"
    else:
        where = f"at byte {finding.offset} of {finding.memory}"
    return (
        f"out of bounds: {_what(finding)} {where}, which has {finding.extent} bytes, by "
        f"{_who(finding)}"
    )


def _uninitialized(finding: Finding) -> str:
    return (
        f"uninitialized: {_what(finding)} at byte {finding.offset} of {finding.memory}, to which "
        f"nothing was written before, by {_who(finding)}"
    )


def _alignment(finding: Finding) -> str:
    return (
        f"misaligned: byte {finding.offset} of {finding.memory} is not at a multiple of "
        f"{finding.alignment}, as its type in this line demands, in {_who(finding)}; use a packed "
        "type or an aligned offset (the thread was ended here)"
    )


def merge(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Findings in the order of their first occurrence, those of the same kind, lines and variable
    as one: a race is the same whichever side comes first, and explains why a read of it came before
    any write."""
    merged = dict[tuple[object, ...], Finding]()
    for finding in findings:
        sides = {(finding.access, finding.file, finding.line)}
        if finding.other is not None:
            sides.add(finding.other[:3])
        key = (finding.kind, finding.space, finding.variable, frozenset(sides))
        first = merged.get(key)
        merged[key] = first._replace(count=first.count + finding.count) if first else finding
    raced = {
        (finding.space, finding.variable, side.file, side.line)
        for finding in merged.values()
        if finding.other is not None
        for side in (finding, finding.other)
    }
    return tuple(
        finding
        for finding in merged.values()
        if finding.kind != "uninitialized"
        or (finding.space, finding.variable, finding.file, finding.line) not in raced
    )


_collected: ContextVar[list[Finding] | None] = ContextVar("metalsim_findings", default=None)


@contextmanager
def collect_findings() -> Generator[list[Finding]]:
    """Gather the findings of the launches inside the `with` in a list, instead of raising
    CheckError."""
    findings = list[Finding]()
    token = _collected.set(findings)
    try:
        yield findings
    finally:
        _collected.reset(token)


def collected() -> list[Finding] | None:
    """The list of the innermost `with collect_findings()`, None outside."""
    return _collected.get()
