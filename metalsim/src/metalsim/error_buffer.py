"""The buffer into which a kernel writes its own errors: ErrorMessages of torch's
c10/metal/error.h."""

from __future__ import annotations

import ctypes

from .errors import KernelReportedError
from .launch import Buffer

_MESSAGES = 30


class _Message(ctypes.Structure):
    _fields_ = (
        ("file", ctypes.c_char * 128),
        ("function", ctypes.c_char * 128),
        ("text", ctypes.c_char * 250),
        ("line", ctypes.c_uint32),
    )


class _Messages(ctypes.Structure):
    _fields_ = (("count", ctypes.c_uint32), ("messages", _Message * _MESSAGES))


class ErrorBuffer:
    """One empty buffer for one launch."""

    def __init__(self) -> None:
        self._messages = _Messages()

    def buffer(self) -> Buffer:
        """The memory to bind."""
        return Buffer(
            ctypes.addressof(self._messages),
            ctypes.sizeof(self._messages),
            self._messages,
            read_back=True,
        )

    def check(self) -> None:
        """KernelReportedError with the first message, and how many there were."""
        count = int(self._messages.count)
        if not count:
            return
        first = self._messages.messages[0]
        file, function, text = (
            bytes(part).decode("ascii", "replace")
            for part in (first.file, first.function, first.text)
        )
        more = f" (and {count - 1} more)" if count > 1 else ""
        raise KernelReportedError(f"{file}:{first.line}: {function}: {text}{more}", "kernel")
