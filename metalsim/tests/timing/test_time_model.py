"""The time model: its limits by hand, its chips, its page, and work from counters."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

import metalsim
from metalsim.timing import Work, chip, chips, predict, work_of_counters
from metalsim.timing.model import resident_simdgroups

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
WAVE = Work(threadgroups=320, simdgroups=4)
"""Full waves on chips of 8, 10, 20, 32 and 40 cores."""


@pytest.fixture(scope="module")
def study() -> ModuleType:
    """benchmarks/time_model.py."""
    spec = importlib.util.spec_from_file_location("time_model", BENCHMARKS / "time_model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_the_page_is_not_stale(study: ModuleType):
    assert study.PAGE.read_text(encoding="ascii") == study.page()


def test_published_rows_are_all_described(study: ModuleType):
    rows = study.read_rows()
    assert len(rows) >= 35
    assert sum(row.fitted for row in rows) == 4
    assert all(row.chip in chips() for row in rows)


@pytest.mark.parametrize("name", list(chips()))
def test_every_chip_has_its_sources(name: str):
    found = chip(name)
    assert found.sources
    assert found.family.sources
    assert 1.2 < found.ghz < 1.8
    assert chip(name.lower().replace("-", " ")) is found


def test_an_unknown_chip_is_named_with_those_known():
    with pytest.raises(ValueError, match=r"no chip is named 'M0'; known are M1, "):
        chip("M0")


@pytest.mark.parametrize(
    ("work", "name", "limit", "milliseconds"),
    [
        (WAVE._replace(matrix_multiply_adds=1e9), "M1", "matrix", 1e9 / (8 * 102 * 1.278e6)),
        (WAVE._replace(tensor_multiply_adds=1e10), "M5", "matrix", 1e10 / (10 * 512 * 1.578e6)),
        (WAVE._replace(issue_cycles=1e8), "M4", "ALU", 1e8 / (4 * 10 * 1.55e6)),
        (WAVE._replace(exponentials=1e9), "M5", "exp", 1e9 / (10 * 64 * 1.578e6)),
        (WAVE._replace(l1_bytes=1e9), "M1", "L1", 1e9 / (8 * 64 * 1.278e6)),
        (WAVE._replace(l2_bytes=1e9), "M1", "L2", 1e9 / (8 * 32 * 1.278e6)),
        (WAVE._replace(dram_bytes=68e6), "M1", "DRAM", 1.0),
        (WAVE._replace(launches=3), "M1", "launch", 0.004),
    ],
)
def test_each_limit_by_hand(work: Work, name: str, limit: str, milliseconds: float):
    prediction = predict(work, chip(name))
    assert prediction.limit == limit
    assert prediction.seconds * 1e3 == pytest.approx(milliseconds + 0.005)


def test_matrices_and_instructions_share_the_issue_until_apple10():
    work = WAVE._replace(matrix_multiply_adds=1e9, tensor_multiply_adds=0, issue_cycles=3e7)
    seconds: dict[str, float] = {}
    for name in ("M1", "M4", "M5"):
        limits = predict(work, chip(name)).limits
        hidden = {"M1": 0.0, "M4": 0.75, "M5": 1.0}[name]
        matrix, instructions = limits["matrix"], limits["ALU"]
        seconds[name] = max(matrix, instructions) + (1 - hidden) * min(matrix, instructions)
        assert predict(work, chip(name)).seconds == pytest.approx(seconds[name] + 5e-6)


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


def test_few_simdgroups_show_the_second_limit_too():
    work = WAVE._replace(l1_bytes=2e9, exponentials=5e8, threadgroup_bytes=27136)
    prediction = predict(work, chip("M1"))
    expected = prediction.limits["L1"] + 0.5 * prediction.limits["exp"]
    assert prediction.seconds == pytest.approx(expected + 5e-6)


def test_registers_over_the_limit_spill():
    work = WAVE._replace(l1_bytes=1e6, registers=140, spilled_executions=1e6)
    limits = predict(work, chip("M1")).limits
    assert limits["L1"] == pytest.approx((1e6 + 1e6 * 12 * 8) / (8 * 64 * 1.278e9))


def test_fenced_loads_expose_their_latency():
    """A core's 24 simdgroups each take 90 cycles a product, or 180 if only 12 are there."""
    work = WAVE._replace(matrix_multiply_adds=512e6, multiplies_a_load=1, registers=128)
    limits = predict(work, chip("M1")).limits
    assert limits["latency"] == pytest.approx(1e6 * 90 / 12 / (8 * 1.278e9))
    assert predict(work, chip("M4")).limits["latency"] == pytest.approx(
        1e6 * 48 / 24 / (10 * 1.55e9)
    )
    assert predict(work, chip("M5")).limits["latency"] == 0


def test_work_of_a_launch():
    library = metalsim.compile_shader(
        """#include <metal_stdlib>
        using namespace metal;
        kernel void scale(device float* x, uint i [[thread_position_in_grid]]) {
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
