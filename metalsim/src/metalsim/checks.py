"""Which checkers watch a launch: names to the machine's bits."""

from __future__ import annotations

import os
from collections.abc import Collection

CHECKS = {"races": 1, "bounds": 2, "uninitialized": 4, "alignment": 8, "divergence": 0}
"""The names, and the bits of `metalsim_launch.checks`. Divergence is always found: a launch cannot
go on with it."""

Check = bool | str | Collection[str] | None

_TRUE, _FALSE = ("1", "true", "yes", "on"), ("", "0", "false", "no", "off")


def read_check(check: Check) -> int | None:
    """The machine's bits for the argument `check` of compile_shader; None for a fast build.

    None reads METALSIM_CHECK. No names at all is a checking build that only counts.

    Raises ValueError for a name that is none of CHECKS.
    """
    if check is None:
        word = os.environ.get("METALSIM_CHECK", "").lower()
        if word in (*_TRUE, *_FALSE):
            return _bits(CHECKS, "METALSIM_CHECK") if word in _TRUE else None
        return _bits(_names(word), "METALSIM_CHECK")
    if isinstance(check, bool):
        return _bits(CHECKS, "check") if check else None
    return _bits(_names(check) if isinstance(check, str) else check, "compile_shader: check")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _bits(names: Collection[str], where: str) -> int:
    bits = 0
    for name in names:
        if name not in CHECKS:
            known = ", ".join(CHECKS)
            raise ValueError(f"{where} must be 0, 1 or names of {known}; not {name!r}")
        bits |= CHECKS[name]
    return bits
