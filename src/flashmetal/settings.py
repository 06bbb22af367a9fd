"""The environment variables of flashmetal, read once."""

from __future__ import annotations

import os
from functools import cache
from typing import NamedTuple

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


def _one_of(name: str, allowed: tuple[str, ...]) -> str | None:
    value = os.environ.get(name) or None
    if value is not None and value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    return value
