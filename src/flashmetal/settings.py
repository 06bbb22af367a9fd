"""The environment variables of flashmetal, read once."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from .checks import IMPLS, KERNELS


class Settings(NamedTuple):
    """What the environment asks for.

    ``impl`` is $FLASHMETAL_IMPL and ``kernel`` is $FLASHMETAL_KERNEL: the choice where a call says
    impl="auto". ``verify`` is $FLASHMETAL_VERIFY, 0 of which trusts Metal kernels unseen.
    """

    impl: str
    kernel: str | None
    verify: bool


@cache
def settings() -> Settings:
    """The settings of this process. Raises ValueError for values that mean nothing."""
    impl = _one_of("FLASHMETAL_IMPL", IMPLS) or "auto"
    kernel = _one_of("FLASHMETAL_KERNEL", KERNELS)
    if kernel is not None and impl not in ("auto", "metal"):
        raise ValueError(f"FLASHMETAL_KERNEL needs FLASHMETAL_IMPL=metal, got {impl!r}")
    verify = _one_of("FLASHMETAL_VERIFY", ("0", "1")) != "0"
    return Settings(impl if kernel is None else "metal", kernel, verify)


def choice(impl: str, kernel: str | None = None) -> tuple[str, str | None]:
    """The engine and kernel that a call asks for, by itself or, where it says "auto", by the
    environment; what either asks for never falls back."""
    if impl != "auto":
        return impl, kernel
    # torch.compile traces past a cache, and warns of it.
    read = settings.__wrapped__ if torch.compiler.is_compiling() else settings
    return read()[:2]


def _one_of(name: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(name) or None
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value


def trace_target() -> str | None:
    """$FLASHMETAL_TRACE: None where it is unset or 0, "1" for a table, or the path of a JSON file.

    Raises ValueError for a path that cannot be written.
    """
    target = os.environ.get("FLASHMETAL_TRACE", "0")
    if target in ("", "0"):
        return None
    return target if target == "1" else trace_path("FLASHMETAL_TRACE", target)


def trace_path(name: str, path: str) -> str:
    """``path`` from the root, whatever folder the program ends in.

    Raises ValueError unless a file can be made there: told before the calls, not after them.
    """
    whole = Path(path).absolute()
    if whole.is_dir() or not os.access(whole.parent, os.W_OK):
        raise ValueError(f"{name} must be a file in a folder that can be written to, got {path!r}")
    return str(whole)
