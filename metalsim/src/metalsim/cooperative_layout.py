"""Which lane holds which element of a cooperative tensor: Apple leaves it to the implementation, so
here it is the caller's choice."""

from __future__ import annotations

import os
from typing import NamedTuple

ENVIRONMENT = "METALSIM_COOPERATIVE_LAYOUT"
_NUMBERS = {"apple10": 10, "older": 9, "random": 0}
"""As builtins/metalsim/cooperative_layout.h knows them."""


class CooperativeLayout(NamedTuple):
    """One layout: "apple10", "older" or "random", the last drawn from a seed."""

    name: str
    seed: int = 0

    def definitions(self) -> str:
        """The C++ that selects it, ahead of metalsim's tensor headers."""
        return (
            f"#define METALSIM_COOPERATIVE_LAYOUT {_NUMBERS[self.name]}\n"
            f"#define METALSIM_COOPERATIVE_SEED {self.seed}ull\n"
        )


def read_layout(chosen: str | None) -> CooperativeLayout:
    """`chosen`, else $METALSIM_COOPERATIVE_LAYOUT, else "apple10".

    Raises ValueError for anything but "apple10", "older" and "random:SEED".
    """
    text = os.environ.get(ENVIRONMENT, "") if chosen is None else chosen
    name, colon, seed = (text or "apple10").partition(":")
    if name == "random" and seed.isdecimal() and int(seed) < 1 << 64:
        return CooperativeLayout(name, int(seed))
    if name not in _NUMBERS or name == "random" or colon:
        where = ENVIRONMENT if chosen is None else "compile_shader: cooperative_layout"
        raise ValueError(f'{where} must be "apple10", "older" or "random:SEED", not {text!r}')
    return CooperativeLayout(name)
