"""The limits of a launch: each the seconds that it would take were nothing else in its way, with
the work spread evenly over all cores."""

from __future__ import annotations

from .chips import Chip
from .work import LANES, Work

PARTITIONS = 4
"""Parts of a core that each issue one instruction a cycle (metal-benchmarks)."""
REGISTER_BYTES = 208 * 1024
"""Of a core of Apple7 and 8 (metal-benchmarks)."""
MOST_REGISTERS = 128
"""32-bit registers a lane of Apple7 and 8 (dougallj's G13 documentation)."""
GROUP_BYTES = 60 * 1024
"""Threadgroup memory of a core of Apple7 and 8 (metal-benchmarks); taken for the others."""
MOST_SIMDGROUPS = 24
"""On a core, with which the ALU is busy (metal-benchmarks)."""
BARRIER_CYCLES = 30
"""Of a threadgroup barrier: an estimate."""
FIRST_LAUNCH = 5e-6
"""Seconds of a launch through torch (pytorch#148219: 4.6 to 7.6 us)."""
FURTHER_LAUNCH = 2e-6
"""Seconds of each further one (qwisp#143: 2.05 us)."""


def matrix(work: Work, chip: Chip) -> float:
    """Multiply-adds over the rates of their units."""
    cycles = (
        work.matrix_multiply_adds / chip.family.matrix
        + work.tensor_multiply_adds / chip.family.tensor
    )
    return cycles / chip.core_hertz


def instructions(work: Work, chip: Chip) -> float:
    """Issue: one instruction a cycle and partition."""
    return work.issue_cycles / PARTITIONS / chip.core_hertz


def arithmetic(work: Work, chip: Chip) -> float:
    """Matrices and instructions together: 8x8 multiplies leave no cycle to any instruction on
    Apple7 and 8, none to floating-point arithmetic later."""
    shared = work.issue_cycles if chip.family.shared == "all" else work.float_cycles
    cycles = work.matrix_multiply_adds / chip.family.matrix + shared / PARTITIONS
    return max(cycles / chip.core_hertz, matrix(work, chip), instructions(work, chip))


def exponentials(work: Work, chip: Chip) -> float:
    """A pipe of its own."""
    return work.exponentials / chip.family.exponentials / chip.core_hertz


def l1(work: Work, chip: Chip) -> float:
    """Bytes of lanes, from L1 and threadgroup memory, spilled registers among them."""
    total = work.l1_bytes + spilled_bytes(work, chip)
    return total / chip.family.l1_bytes / chip.core_hertz


def spilled_bytes(work: Work, chip: Chip) -> float:
    """Registers beyond the most that a lane has, stored and loaded through L1. None on Apple9 and
    later, whose registers are a part of one cache, by rules that are not published."""
    if chip.family.number > 8:
        return 0.0
    return work.spilled_executions * max(work.registers - MOST_REGISTERS, 0) * 2 * 4


def l2(work: Work, chip: Chip) -> float:
    """Bytes of threadgroups, from beyond L1."""
    return work.l2_bytes / chip.family.l2_bytes / chip.core_hertz


def dram(work: Work, chip: Chip) -> float:
    """Every byte once."""
    return work.dram_bytes / (chip.dram_gbs * 1e9)


def waits(work: Work, chip: Chip) -> float:
    """For loads and at barriers, were each core's simdgroups to run one after the other."""
    family = chip.family
    cycles = (
        work.load_waits * family.load_cycles
        + work.l2_waits * family.l2_cycles
        + work.dram_waits * family.dram_cycles
        + work.barriers * work.simdgroups * BARRIER_CYCLES
    )
    return cycles / chip.core_hertz


def launch(work: Work) -> float:
    """The first launch and those behind it."""
    return FIRST_LAUNCH + (work.launches - 1) * FURTHER_LAUNCH


def resident_simdgroups(work: Work, chip: Chip) -> int:
    """Simdgroups that a core holds at once: by threadgroup memory, and by registers on Apple7 and 8
    (later families share one memory out as they run, by rules that are not published)."""
    groups = MOST_SIMDGROUPS // work.simdgroups
    if work.threadgroup_bytes:
        groups = min(groups, GROUP_BYTES // work.threadgroup_bytes)
    if work.registers and chip.family.number <= 8:
        held = min(work.registers, MOST_REGISTERS)
        groups = min(groups, REGISTER_BYTES // (4 * LANES * held) // work.simdgroups)
    return max(groups, 1) * work.simdgroups
