"""Which Apple GPU a plan is made for: given by the caller, or read from the machine."""

from __future__ import annotations

import platform
import re
import subprocess
from functools import lru_cache
from typing import Any, NamedTuple

import torch

# Chip -> (Metal GPU family Apple<n>, GPU cores of the largest variant sold under that name).
_CHIPS = {
    "M1": (7, 8),
    "M1 Pro": (7, 16),
    "M1 Max": (7, 32),
    "M1 Ultra": (7, 64),
    "M2": (8, 10),
    "M2 Pro": (8, 19),
    "M2 Max": (8, 38),
    "M2 Ultra": (8, 76),
    "M3": (9, 10),
    "M3 Pro": (9, 18),
    "M3 Max": (9, 40),
    "M3 Ultra": (9, 80),
    "M4": (9, 10),
    "M4 Pro": (9, 20),
    "M4 Max": (9, 40),
    "M5": (10, 10),
    "M5 Pro": (10, 20),
    "M5 Max": (10, 40),
}


class Gpu(NamedTuple):
    """An Apple GPU as the planner sees it.

    ``family`` is Apple's GPU family number (7 for M1 ... 10 for M5), ``cores`` the GPU cores.
    """

    name: str
    family: int
    cores: int

    @classmethod
    def named(cls, name: str, cores: int | None = None) -> Gpu:
        """The GPU of chip ``name`` ("M1", "M3 Max", ...; "Apple M3 Max" is understood too).

        A chip newer than this table is taken for the newest known family, with 10 cores unless
        ``cores`` says otherwise. Raises ValueError for a name that is not an Apple M chip.
        """
        match = re.search(r"\bM(\d+)( Pro| Max| Ultra)?", name)
        if match is None:
            known = ", ".join(_CHIPS)
            raise ValueError(f"Gpu.named: expected an Apple chip such as {known}; got {name!r}")
        chip = match.group(0)
        family, most_cores = _CHIPS.get(chip, (max(family for family, _ in _CHIPS.values()), 10))
        return cls(chip, family, cores or most_cores)

    @classmethod
    @lru_cache(maxsize=1)
    def current(cls) -> Gpu:
        """The GPU of this Mac. Raises RuntimeError where torch sees no MPS device."""
        if not torch.backends.mps.is_available():
            raise RuntimeError(
                "Gpu.current: torch sees no Apple GPU on this machine "
                f"({platform.system()} {platform.machine()}); give one with Gpu.named('M1')"
            )
        torch_c: Any = vars(torch)["_C"]  # names the chip from torch 2.9 on
        read_name = getattr(torch_c, "_mps_get_name", None)
        read_cores = getattr(torch_c, "_mps_get_core_count", None)
        name = read_name() if read_name else _brand_string()
        return cls.named(name, read_cores() if read_cores else None)


def _brand_string() -> str:
    command = ["sysctl", "-n", "machdep.cpu.brand_string"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
