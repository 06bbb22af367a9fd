"""Predicted time: simdgroups of a core that queue for what they share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from . import limits
from .chips import Chip
from .work import Work


class Prediction(NamedTuple):
    """A predicted time in seconds, and why."""

    seconds: float
    limit: str
    """The largest of `limits`."""
    limits: dict[str, float]
    """Seconds that each part alone would take; latency: the simdgroups that a core holds at once
    never in each other's way; tail: what cores idle while the last threadgroups run."""
    resident_simdgroups: int
    """That a core holds at once."""


def predict(work: Work, chip: Chip) -> Prediction:
    """The time of `work` on `chip`: that of its busiest core or of DRAM, and the launches.

    A core is a closed queueing network. Its resident simdgroups take turns at matrices and
    instructions, exponentials, L1 and L2, and wait for loads and barriers in between.
    """
    shared = [
        limits.arithmetic(work, chip),
        limits.exponentials(work, chip),
        limits.l1(work, chip),
        limits.l2(work, chip),
    ]
    # Matrices, instructions and exponentials are done by the partition that a simdgroup is on.
    delay = limits.waits(work, chip) + (limits.PARTITIONS - 1) * (shared[0] + shared[1])
    groups = math.ceil(work.threadgroups / chip.cores)
    resident = min(limits.resident_simdgroups(work, chip), groups * work.simdgroups)
    even = core_seconds(shared, delay, resident)
    busiest = even * groups * chip.cores / work.threadgroups
    dram, launch = limits.dram(work, chip), limits.launch(work)
    parts = {
        "matrix": limits.matrix(work, chip),
        "ALU": limits.instructions(work, chip),
        "exp": shared[1],
        "L1": shared[2],
        "L2": shared[3],
        "latency": (delay + sum(shared)) / resident,
        "DRAM": dram,
        "tail": busiest - even,
        "launch": launch,
    }
    limit = max(parts, key=lambda name: parts[name])
    return Prediction(max(busiest, dram) + launch, limit, parts, resident)


def core_seconds(shared: Sequence[float], delay: float, simdgroups: int) -> float:
    """Seconds of a core that does everything with `simdgroups` at once, of which each takes turns
    at what is `shared` and is delayed; both as seconds of one simdgroup that does it all alone.

    Exact mean value analysis of a closed queueing network (Reiser and Lavenberg 1980).
    """
    if delay + sum(shared) == 0:
        return 0.0
    queues = [0.0] * len(shared)
    each = 0.0
    for count in range(1, simdgroups + 1):
        turns = [seconds * (1 + queue) for seconds, queue in zip(shared, queues, strict=True)]
        each = (delay + sum(turns)) / count
        queues = [turn / each for turn in turns]
    return each
