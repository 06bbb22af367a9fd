"""Predicted time: the largest of the limits of the chip, and how much of the next one shows."""

from __future__ import annotations

import math
from typing import NamedTuple

from .chips import Chip

LANES = 32
PARTITIONS = 4
"""Parts of a core that each issue one instruction a cycle (metal-benchmarks)."""
MATRIX_MULTIPLY_ADDS = 512
"""Of an 8x8x8 multiply."""
REGISTER_BYTES = 208 * 1024
"""Of a core of Apple7 and 8 (metal-benchmarks)."""
MOST_REGISTERS = 128
"""32-bit registers a lane of Apple7 and 8; more spill (dougallj's G13 documentation)."""
GROUP_BYTES = 60 * 1024
"""Threadgroup memory of a core of Apple7 and 8 (metal-benchmarks); taken for the others."""
MOST_SIMDGROUPS = 24
"""With which the ALU is busy without help from within a simdgroup (metal-benchmarks)."""
OVERLAPPING_SIMDGROUPS = 16
"""From which on the second limit hides behind the first: fitted on one published row."""
FIRST_LAUNCH = 5e-6
"""Seconds of a launch through torch (pytorch#148219: 4.6 to 7.6 us)."""
FURTHER_LAUNCH = 2e-6
"""Seconds of each further one (qwisp#143: 2.05 us)."""


class Work(NamedTuple):
    """What a launch does in all, however it came to be known."""

    threadgroups: int
    simdgroups: int
    """A threadgroup."""
    matrix_multiply_adds: float = 0
    tensor_multiply_adds: float = 0
    issue_cycles: float = 0
    """Of a partition: instructions of simdgroups, each with its cost in cycles, matrices and
    exponentials left out."""
    exponentials: float = 0
    """Of lanes."""
    l1_bytes: float = 0
    """Loaded and stored by lanes, in device and threadgroup memory."""
    l2_bytes: float = 0
    """That threadgroups fetch from beyond L1."""
    dram_bytes: float = 0
    """Each byte once."""
    threadgroup_bytes: int = 0
    """Threadgroup memory of one threadgroup."""
    registers: int = 0
    """32-bit registers a lane; 0: not known."""
    multiplies_a_load: float = math.inf
    """8x8 multiplies between one fragment's load and the next, where a fence keeps the compiler
    from loading ahead; infinity where it may."""
    spilled_executions: float = 0
    """How often a lane runs through the code that holds all its registers: what does not fit is
    stored and loaded each time."""
    launches: int = 1


class Prediction(NamedTuple):
    """A predicted time in seconds, and why."""

    seconds: float
    limit: str
    """The largest of `limits`."""
    limits: dict[str, float]
    """Seconds that each part alone would take."""
    resident_simdgroups: int
    """That a core holds at once."""


def predict(work: Work, chip: Chip) -> Prediction:
    """The time of `work` on `chip`: max(limits) + (1 - overlap) * second + launches.

    overlap = min(1, resident simdgroups / 16). Matrices and other instructions share the issue on
    Apple7 and 8, three quarters of the smaller hide on Apple9, all on Apple10. The last wave of
    threadgroups, which leaves cores idle, stretches everything but DRAM and launches.
    """
    resident = resident_simdgroups(work, chip)
    limits = _core_limits(work, chip, resident)
    combined = {**limits, "matrix": _with_instructions(limits, chip)}
    del combined["ALU"]
    waves = work.threadgroups / chip.cores
    tail = math.ceil(waves) / waves
    dram = work.dram_bytes / (chip.dram_gbs * 1e9)
    ordered = sorted([dram, *(tail * seconds for seconds in combined.values())], reverse=True)
    overlap = min(1.0, resident / OVERLAPPING_SIMDGROUPS)
    launch = FIRST_LAUNCH + (work.launches - 1) * FURTHER_LAUNCH
    busy = ordered[0] + (1 - overlap) * ordered[1]
    limits |= {
        "DRAM": dram,
        "launch": launch,
        "tail": (tail - 1) * max(combined.values()),
    }
    return Prediction(busy + launch, max(limits, key=lambda name: limits[name]), limits, resident)


def resident_simdgroups(work: Work, chip: Chip) -> int:
    """Simdgroups that fit a core: by threadgroup memory, and by registers on Apple7 and 8 (later
    families share one pool of memory out as they run, by rules that are not published)."""
    groups = MOST_SIMDGROUPS // work.simdgroups or 1
    if work.threadgroup_bytes:
        groups = min(groups, GROUP_BYTES // work.threadgroup_bytes or 1)
    resident = groups * work.simdgroups
    if work.registers and chip.family.number <= 8:
        held = min(work.registers, MOST_REGISTERS)
        fit = REGISTER_BYTES // (4 * LANES * held)
        resident = min(resident, max(fit // work.simdgroups, 1) * work.simdgroups)
    return resident


def _core_limits(work: Work, chip: Chip, resident: int) -> dict[str, float]:
    """Seconds, with the work spread evenly over all cores."""
    family, cycles = chip.family, chip.cores * chip.ghz * 1e9
    l1_bytes = work.l1_bytes + _spilled_bytes(work, chip)
    return {
        "matrix": work.matrix_multiply_adds / family.matrix / cycles
        + work.tensor_multiply_adds / family.tensor / cycles,
        "ALU": work.issue_cycles / PARTITIONS / cycles,
        "exp": work.exponentials / family.exponentials / cycles,
        "L1": l1_bytes / family.l1_bytes / cycles,
        "L2": work.l2_bytes / family.l2_bytes / cycles,
        "latency": _exposed_latency(work, chip, resident) / cycles,
    }


def _with_instructions(limits: dict[str, float], chip: Chip) -> float:
    matrix, instructions = limits["matrix"], limits["ALU"]
    if chip.family.number <= 8:
        return matrix + instructions
    hidden = 0.75 if chip.family.number == 9 else 1.0
    return max(matrix, instructions) + (1 - hidden) * min(matrix, instructions)


def _exposed_latency(work: Work, chip: Chip, resident: int) -> float:
    """Cycles of a core, for fragments that are loaded just before they are multiplied; 0 where the
    family's latency is not known."""
    latency = chip.family.load_to_multiply
    if latency == 0 or math.isinf(work.multiplies_a_load):
        return 0.0
    multiplies = work.matrix_multiply_adds / MATRIX_MULTIPLY_ADDS
    throughput = MATRIX_MULTIPLY_ADDS * PARTITIONS / chip.family.matrix
    step = latency + (work.multiplies_a_load - 1) * throughput
    return multiplies / work.multiplies_a_load * step / max(resident, 1)


def _spilled_bytes(work: Work, chip: Chip) -> float:
    if chip.family.number > 8:
        return 0.0
    return work.spilled_executions * max(work.registers - MOST_REGISTERS, 0) * 2 * 4
