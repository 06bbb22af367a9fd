"""The time model: each limit by hand, its queue, its chips, and work from counters."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import metalsim
from metalsim.timing import Work, chip, chips, predict, work_of_counters
from metalsim.timing.limits import arithmetic, resident_simdgroups
from metalsim.timing.model import core_seconds
from metalsim.timing.tables import read_table

WAVE = Work(threadgroups=320, simdgroups=4)
"""Full waves on chips of 8, 10, 20, 32 and 40 cores."""
LAUNCH = 0.005
"""Milliseconds."""


@pytest.mark.parametrize("name", list(chips()))
def test_every_chip_has_its_sources(name: str):
    found = chip(name)
    assert found.sources
    assert found.family.sources
    assert found.family.shared in ("all", "float")
    assert 1.2 < found.ghz < 1.8
    assert chip(name.lower().replace("-", " ")) is found


def test_an_unknown_chip_is_named_with_those_known():
    with pytest.raises(ValueError, match=r"no chip is named 'M0'; known are M1, "):
        chip("M0")


class _Pair(NamedTuple):
    count: int
    good: bool
    words: str


def test_a_table_gives_typed_rows(tmp_path: Path):
    path = tmp_path / "table.txt"
    path.write_text("# a comment\n3  1  all the rest\n\n4 0 x\n")
    assert read_table(path, _Pair) == [_Pair(3, True, "all the rest"), _Pair(4, False, "x")]
    path.write_text("3 yes x\n")
    with pytest.raises(KeyError):
        read_table(path, _Pair)


@pytest.mark.parametrize(
    ("work", "name", "limit", "milliseconds"),
    [
        (WAVE._replace(matrix_multiply_adds=1e9), "M1", "matrix", 1e9 / (8 * 114 * 1.278e6)),
        (WAVE._replace(tensor_multiply_adds=1e10), "M5", "matrix", 1e10 / (10 * 512 * 1.578e6)),
        (WAVE._replace(issue_cycles=1e8), "M4", "ALU", 1e8 / (4 * 10 * 1.47e6)),
        (WAVE._replace(exponentials=1e9), "M5", "exp", 1e9 / (10 * 64 * 1.578e6)),
        (WAVE._replace(l1_bytes=1e9), "M1", "L1", 1e9 / (8 * 64 * 1.278e6)),
        (WAVE._replace(l2_bytes=1e9), "M1", "L2", 1e9 / (8 * 37.6 * 1.278e6)),
        (WAVE._replace(dram_bytes=68e6), "M1", "DRAM", 1.0),
        (WAVE._replace(load_waits=1e7), "M1", "latency", 1e7 * 55 / 24 / (8 * 1.278e6)),
        (WAVE._replace(l2_waits=1e7), "M4", "latency", 1e7 * 98 / 24 / (10 * 1.47e6)),
        (WAVE._replace(dram_waits=1e7), "M5", "latency", 1e7 * 397 / 24 / (10 * 1.578e6)),
        (WAVE._replace(barriers=1e7), "M1", "latency", 1e7 * 4 * 30 / 24 / (8 * 1.278e6)),
        (WAVE._replace(launches=3), "M1", "launch", 0.004),
    ],
)
def test_each_limit_by_hand(work: Work, name: str, limit: str, milliseconds: float):
    prediction = predict(work, chip(name))
    assert prediction.limit == limit
    assert prediction.seconds * 1e3 == pytest.approx(milliseconds + LAUNCH)
    assert prediction.limits["tail"] == pytest.approx(0)


@pytest.mark.parametrize(
    ("counter", "count", "limit"),
    [
        ("matrix_multiplies", 10**9, "matrix"),
        ("tensor_multiply_adds", 10**12, "matrix"),
        ("threadgroup_loads", 10**9, "ALU"),
        ("reductions", 10**9, "ALU"),
        ("trigonometric", 10**10, "ALU"),
        ("exponentials", 10**10, "exp"),
        ("threadgroup_bytes_stored", 10**10, "L1"),
        ("bank_conflicts", 10**8, "L1"),
        ("device_lines_loaded", 10**8, "L2"),
        ("threadgroup_barriers", 10**7, "latency"),
        ("atomics", 0, "launch"),
    ],
)
def test_each_limit_binds_where_only_its_counter_is_high(counter: str, count: int, limit: str):
    counters = collections.Counter({counter: count})
    for name in chips():
        groups = 240 * chip(name).cores
        work = work_of_counters(counters, [groups * 128], [128])
        assert predict(work, chip(name)).limit == limit, name


def test_dram_and_the_tail_bind_where_they_should():
    counters = collections.Counter(device_bytes_loaded=10**9)
    assert predict(work_of_counters(counters, [128], [128]), chip("M1")).limit == "tail"
    work = work_of_counters(counters, [2**20], [128], dram_bytes=10**9)
    assert predict(work, chip("M1")).limit == "DRAM"


def test_work_of_nothing_takes_a_launch():
    assert predict(WAVE, chip("M1")).seconds == 5e-6


def test_what_shares_cycles_with_matrices():
    """All instructions on Apple7, floating point later; others beside them."""
    work = WAVE._replace(matrix_multiply_adds=1e9, issue_cycles=3e7, float_cycles=1e7)
    cycles = 1e9 / 114
    for name, together in (("M1", cycles + 3e7 / 4), ("M4", cycles + 1e7 / 4)):
        assert arithmetic(work, chip(name)) == pytest.approx(together / chip(name).core_hertz)
    many = work._replace(issue_cycles=1e9)
    assert arithmetic(many, chip("M4")) == pytest.approx(1e9 / 4 / chip("M4").core_hertz)


def test_a_half_empty_last_wave_stretches_the_cores_not_dram():
    work = Work(threadgroups=12, simdgroups=4, l1_bytes=1e9, dram_bytes=1e6)
    whole = predict(work._replace(threadgroups=16), chip("M1")).seconds - 5e-6
    prediction = predict(work, chip("M1"))
    assert prediction.seconds - 5e-6 == pytest.approx(whole * 16 / 12)
    assert prediction.limits["tail"] == pytest.approx(whole / 3)
    assert prediction.limits["DRAM"] == pytest.approx(1e6 / 68e9)


@pytest.mark.parametrize(
    ("registers", "group_bytes", "resident"),
    [(0, 0, 24), (64, 0, 24), (104, 0, 16), (128, 0, 12), (200, 0, 12), (64, 27136, 8)],
)
def test_resident_simdgroups_of_apple7(registers: int, group_bytes: int, resident: int):
    work = WAVE._replace(registers=registers, threadgroup_bytes=group_bytes)
    assert resident_simdgroups(work, chip("M1")) == resident
    if not group_bytes:
        assert resident_simdgroups(work, chip("M4")) == 24


def test_registers_over_the_most_spill_through_l1():
    work = WAVE._replace(l1_bytes=1e6, registers=140, spilled_executions=1e6)
    assert predict(work, chip("M1")).limits["L1"] == pytest.approx(
        (1e6 + 1e6 * 12 * 8) / (8 * 64 * 1.278e9)
    )
    assert predict(work, chip("M4")).limits["L1"] == pytest.approx(1e6 / (10 * 64 * 1.47e9))


def test_a_launch_that_does_not_fill_its_cores_hides_no_latency():
    work = Work(threadgroups=8, simdgroups=4, load_waits=1e6)
    assert predict(work, chip("M1")).resident_simdgroups == 4
    assert predict(work, chip("M1")).limits["latency"] == pytest.approx(
        1e6 * 55 / 4 / (8 * 1.278e9)
    )


def test_a_simdgroup_alone_has_one_partition_of_its_core():
    work = Work(threadgroups=8, simdgroups=1, matrix_multiply_adds=1e9, l1_bytes=1e9)
    limits = predict(work, chip("M1")).limits
    assert limits["latency"] == pytest.approx(4 * limits["matrix"] + limits["L1"])


def test_one_simdgroup_takes_the_sum_and_many_the_largest():
    assert core_seconds([2.0, 1.0], 3.0, 1) == pytest.approx(6)
    assert core_seconds([2.0, 1.0], 3.0, 1000) == pytest.approx(2, rel=1e-2)


def test_equal_queues_have_a_closed_form():
    """N customers and M equal stations without delay: N / (N + M - 1) of the full rate."""
    for count in (1, 5, 24):
        assert core_seconds([1.0, 1.0, 1.0], 0.0, count) == pytest.approx((count + 2) / count)


def test_no_part_is_longer_than_the_prediction():
    work = Work(
        threadgroups=100,
        simdgroups=4,
        matrix_multiply_adds=1e10,
        issue_cycles=1e8,
        float_cycles=5e7,
        exponentials=1e9,
        l1_bytes=1e10,
        l2_bytes=1e9,
        dram_bytes=1e8,
        threadgroup_bytes=16384,
        load_waits=1e7,
        barriers=1e5,
    )
    for name in chips():
        prediction = predict(work, chip(name))
        assert max(prediction.limits.values()) <= prediction.seconds


def test_work_of_a_launch():
    library = metalsim.compile_shader(
        """#include <metal_stdlib>
        using namespace metal;
        kernel void scale(device float* x, uint i [[thread_position_in_grid]]) {
          threadgroup_barrier(mem_flags::mem_device);
          x[i] = simd_sum(exp(x[i]));
        }""",
        check=False,
        profile=True,
    )
    values = torch.zeros(1000)
    library.scale(values, threads=1000, group_size=64)
    work = work_of_counters(library.scale.counters, [1000], [64], dram_bytes=4000)
    assert (work.threadgroups, work.simdgroups) == (16, 2)
    assert work.exponentials == 1000
    assert work.l1_bytes == 8000
    assert work.l2_bytes == 2 * 32 * 128
    assert work.issue_cycles == 32 * (1 + 1 + 14.5)
    assert work.barriers == 16
