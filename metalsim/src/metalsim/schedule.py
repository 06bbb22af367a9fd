"""How launches are scheduled: a fixed order, or a random one from a seed; over how many OS
threads."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple


class Schedule(NamedTuple):
    """`seed` 0 is the fixed order; `workers` 0 is one OS thread a core."""

    seed: int = 0
    workers: int = 0


_current: ContextVar[Schedule | None] = ContextVar("metalsim_schedule", default=None)


@contextmanager
def schedule(*, seed: int | None = None, workers: int | None = None) -> Generator[Schedule]:
    """Schedule the launches inside the `with`.

    `seed` orders threads and threadgroups at random (0: a fixed order), `workers` is the number of
    OS threads (0: one a core). What is left out stays as it was.

    A kernel that is right gives the same answer under every seed.
    """
    outer = current_schedule()
    inner = Schedule(
        outer.seed if seed is None else _natural("seed", seed),
        outer.workers if workers is None else _natural("workers", workers),
    )
    token = _current.set(inner)
    try:
        yield inner
    finally:
        _current.reset(token)


def current_schedule() -> Schedule:
    """The schedule of the innermost `with schedule(...)`, else METALSIM_SEED and METALSIM_WORKERS,
    else the default."""
    chosen = _current.get()
    if chosen is not None:
        return chosen
    return Schedule(_from_environment("METALSIM_SEED"), _from_environment("METALSIM_WORKERS"))


def _from_environment(name: str) -> int:
    text = os.environ.get(name, "0")
    if not text.isdigit():
        raise ValueError(f"{name} must be a whole number, 0 or more; it is {text!r}")
    return _natural(name, int(text))


def _natural(name: str, value: int) -> int:
    limit = 1 << (64 if name in ("seed", "METALSIM_SEED") else 16)
    if not 0 <= value < limit:
        raise ValueError(f"schedule: {name} must be from 0 to {limit - 1}; it is {value}")
    return value
