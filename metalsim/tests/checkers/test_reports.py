"""What a finding says, what a launch with findings does, and memory that several buffers share."""

from __future__ import annotations

import numpy as np
import pytest

import metalsim
from metalsim.errors import PROGRAM_SOURCE

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void exchange(device float* out, uint2 at [[thread_position_in_threadgroup]],
                     uint i [[thread_index_in_threadgroup]],
                     uint group [[threadgroup_position_in_grid]]) {
  threadgroup float unused[3];
  threadgroup float shared[64];
  unused[i % 3] = 0;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (group == 1 && i == 5) shared[40] = 1;
  if (group == 1 && i == 50) out[0] = shared[40];
}

kernel void shift(device const float* from, device float* to, uint i [[thread_position_in_grid]]) {
  to[i] = from[i];
}

kernel void outside(device float* x, device float* out, uint i [[thread_position_in_grid]]) {
  out[i] = x[int(i) - 1];
  x[i + 3] = 7;
}
"""


def library(check: bool | str = True) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=check)


def test_both_sides_of_a_race(compiler: str) -> None:
    with metalsim.collect_findings() as findings:
        library("races").exchange(np.zeros(1, np.float32), threads=[16, 8], group_size=[8, 8])
    first, second = sorted(findings, key=lambda found: found.variable)
    # Threads 0, 3, 6, ... all write unused[0], and so on.
    assert (first.variable, second.variable) == ("shared", "unused")
    for found in (first, second):
        assert (found.kind, found.space, found.kernel) == ("race", "threadgroup", "exchange")
        assert found.file == PROGRAM_SOURCE
    assert second.other is not None
    assert second.line == second.other.line == 10
    assert second.count > 1


def test_where_and_who() -> None:
    with metalsim.collect_findings() as findings:
        library("races").exchange(np.zeros(1, np.float32), threads=128, group_size=64)
    found = next(found for found in findings if found.variable == "shared")
    other = found.other
    assert other is not None
    sides = {(s.access, s.line, s.thread, s.threadgroup) for s in (found, other)}
    assert sides == {("write", 12, (5, 0, 0), (1, 0, 0)), ("read", 13, (50, 0, 0), (1, 0, 0))}
    assert (found.offset, found.size, found.count) == (160, 4, 1)
    for word in ("exchange", "12", "13", "shared", "(5, 0, 0)", "(50, 0, 0)"):
        assert word in str(found)


def test_a_launch_goes_on_and_damages_nothing() -> None:
    memory = np.arange(12, dtype=np.float32)
    x, out = memory[4:8], np.zeros(4, np.float32)
    with pytest.raises(metalsim.BoundsError) as raised:
        library("bounds").outside(x, out, threads=4)
    assert memory.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert np.isnan(out[0])
    assert out[1:].tolist() == [4, 5, 6]
    offsets = {(found.access, found.offset) for found in raised.value.findings}
    assert offsets == {("read", -4), ("write", 16)}


def test_views_of_one_array_race() -> None:
    """Overlapping buffers are one memory, whatever slots they go to."""
    x = np.arange(65, dtype=np.float32)
    with metalsim.collect_findings() as findings:
        library("races").shift(x[1:], x[:-1], threads=64, group_size=64)
        library("races").shift(x[:32], x[32:], threads=32, group_size=32)
    (found,) = findings
    assert (found.kind, found.space) == ("race", "device")
    assert found.other is not None
    assert {found.access, found.other.access} == {"read", "write"}


def test_checks_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(check: bool | str | None) -> set[str]:
        with metalsim.collect_findings() as findings:
            compiled = metalsim.compile_shader(SOURCE, check=check)
            # What is outside of the view is inside of its array: a fast build does it.
            around = np.zeros(12, np.float32)
            compiled.outside(around[4:8], np.zeros(4, np.float32), threads=4)
            compiled.exchange(np.zeros(1, np.float32), threads=128, group_size=64)
        return {found.kind for found in findings}

    assert kinds("races") == {"race"}
    assert kinds("bounds") == {"bounds"}
    assert {"race", "bounds"} <= kinds("races,bounds") <= kinds(True)
    monkeypatch.setenv("METALSIM_CHECK", "bounds")
    assert kinds(None) == {"bounds"}
    assert kinds(False) == set()
