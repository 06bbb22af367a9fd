"""What the front end finds in a program."""

from __future__ import annotations

from typing import NamedTuple

from .emitter import ColumnMap
from .preprocessor import Preprocessed
from .tokens import Token

FunctionConstant = bool | int | float | tuple[int | float, ...]


class Argument(NamedTuple):
    """One kernel parameter: a buffer index, or the name of a built-in value."""

    buffer: int | None
    builtin: str
    constant: bool
    """Whether the buffer is in the constant address space."""
    writable: bool = False
    """Whether the declaration lets the kernel write to the buffer."""
    required: bool = False
    """Whether a launch must bind it: a reference refers to something."""

    def macro(self) -> str:
        """The argument as METALSIM_ENTRY takes it."""
        if self.buffer is None:
            return f"METALSIM_BUILTIN({self.builtin})"
        return f"METALSIM_{'CONSTANT_' if self.constant else ''}BUFFER({self.buffer})"


class Signature(NamedTuple):
    """A kernel function as it was written, template or not."""

    name: Token
    scope: tuple[str, ...]
    """The namespaces around it."""
    arguments: tuple[Argument, ...]
    template: tuple[Token, ...]
    """`template <...>`, or nothing."""
    limit: tuple[Token, ...]
    """The expression of max_total_threads_per_threadgroup, or nothing."""
    group: tuple[Token, ...] = ()
    """The sizes of required_threads_per_threadgroup with their commas, or nothing."""


class Kernel(NamedTuple):
    """A kernel that can be launched: `expression` names the function inside the namespaces
    `scope`."""

    name: str
    expression: str
    where: Token
    scope: tuple[str, ...]
    arguments: tuple[Argument, ...]
    max_threads: int
    group: tuple[int, ...] = ()
    """The only size of a threadgroup that it takes, where it says so."""

    @property
    def writable_buffers(self) -> tuple[int, ...]:
        """The buffer indices whose declarations let the kernel write."""
        return self._slots([argument for argument in self.arguments if argument.writable])

    @property
    def required_buffers(self) -> tuple[int, ...]:
        """The buffer indices that every launch must bind."""
        return self._slots([argument for argument in self.arguments if argument.required])

    def _slots(self, arguments: list[Argument]) -> tuple[int, ...]:
        slots = {argument.buffer for argument in arguments}
        return tuple(sorted(slot for slot in slots if slot is not None))


class Translation(NamedTuple):
    """A whole program as C++, and the way back to the user's source for the compiler's errors."""

    code: str
    kernels: list[Kernel]
    columns: ColumnMap
    preprocessed: Preprocessed
