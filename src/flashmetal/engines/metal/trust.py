"""Trust on first use: a variant proves itself on a small problem before it serves a call.

A compiler or a GPU that nobody tried may refuse a kernel, or run it wrongly. So the first use of
each variant computes a small problem of its own and compares it with the float64 reference. The
verdict is kept by the variant's source, in a file by chip, system and torch version.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from hashlib import sha256
from pathlib import Path
from threading import Lock, Thread

from .machine_files import replace_text
from .variant import Variant, render

_proving: ContextVar[bool] = ContextVar("proving", default=False)


class SetAside(RuntimeError):
    """A kernel that this machine does not compile, or runs wrongly."""

    def __init__(self, names: Sequence[str], reason: str) -> None:
        super().__init__(f"flashmetal: {', '.join(names)} is set aside on this machine: {reason}")
        self.reason = reason


class Trust:
    """Verdicts on variants: "" for right, else what went wrong.

    ``path`` is a JSON file that keeps them, read once; without it they last as long as the process.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._verdicts = _read(path) if path is not None else {}
        self._writing = Lock()

    def require(self, variants: Sequence[Variant], prove: Callable[[], None]) -> None:
        """Return if the variants are right, which ``prove`` shows at their first use.

        Whatever ``prove`` raises sets them aside: a warning names them once, and every use raises
        :class:`SetAside`. Memory that is short says nothing about them: that error is the caller's.
        """
        if _proving.get():
            return
        key = sha256("".join(map(render, variants)).encode()).hexdigest()[:32]
        verdict = self._verdicts.get(key)
        if verdict is None:
            verdict = self._prove(variants, prove)
            self._keep(key, verdict)
        if verdict:
            raise SetAside([str(variant) for variant in variants], verdict)

    def _prove(self, variants: Sequence[Variant], prove: Callable[[], None]) -> str:
        token = _proving.set(True)
        try:
            _apart(prove)
        except Exception as error:  # whatever a compiler or a driver comes up with
            if "out of memory" in str(error):
                raise
            lines = str(error).strip().splitlines() or [""]
            reason = f"{type(error).__name__}: {lines[0]}"
            names = ", ".join(str(variant) for variant in variants)
            warnings.warn(
                f"flashmetal: {names} failed its first use on this machine and is set aside "
                f"({reason}); other kernels serve. Please report `flashmetal verify`",
                RuntimeWarning,
                stacklevel=2,
            )
            return reason
        finally:
            _proving.reset(token)
        return ""

    def _keep(self, key: str, verdict: str) -> None:
        with self._writing:
            self._verdicts[key] = verdict
            if self._path is None:
                return
            # Another process may have added its own meanwhile.
            self._verdicts = {**_read(self._path), **self._verdicts}
            try:
                replace_text(self._path, json.dumps(self._verdicts, indent=1))
            except OSError:
                self._path = None  # a home that cannot be written to: verdicts last for the process


def _apart(prove: Callable[[], None]) -> None:
    """Prove in a thread of its own, and raise what it raises.

    What the caller has told torch (an operator under way, which records no gradients; a default
    device; autocast) is of no concern there.
    """
    failures: list[Exception] = []

    def run() -> None:
        try:
            prove()
        except Exception as error:
            failures.append(error)

    thread = Thread(target=copy_context().run, args=(run,), name="flashmetal proof")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _read(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}
