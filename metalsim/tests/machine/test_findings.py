"""How a launch reports what its checkers found: which of them watch, raising or gathering, memory
that is fresh or reached through a list."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void neighbour(device float* out, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64];
  tile[t] = t;
  out[t] = tile[t ^ 1];
}

kernel void past_the_end(device float* out, uint i [[thread_position_in_grid]]) {
  out[i + 1] = i;
}

kernel void far_away(device float* out, uint i [[thread_position_in_grid]]) {
  out[i == 3 ? 1ul << 40 : i] = 1;
  threadgroup_barrier(mem_flags::mem_device);
  out[i] += 1;
}

kernel void through_a_list(device float* device const* lists, device float* out,
                           constant uint& shift, uint i [[thread_position_in_grid]]) {
  out[i] = lists[0][i] + lists[1][i + shift];
}

kernel void fill(device float* out, uint i [[thread_position_in_grid]]) { out[i] = 1; }

kernel void add_one(device float* out, uint i [[thread_position_in_grid]]) { out[i] += 1; }

kernel void vectors_of_three(device float3* out, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float3 tile[32];
  tile[t] = float3(t);
  const float3 copy = tile[t];
  out[t] = copy;
}

kernel void misaligned(device float* out, device const float* in,
                       uint i [[thread_position_in_grid]]) {
  const float4 four = *(device const float4*)(in + i);
  out[i] = four.x;
}
"""


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=True)


def test_a_race_says_where_and_what_to_do(library: metalsim.ShaderLibrary):
    with pytest.raises(metalsim.CheckError) as caught:
        library.neighbour(torch.zeros(64), threads=64, group_size=64)
    (finding,) = caught.value.findings
    assert library.neighbour.findings == (finding,)
    assert finding.other is not None
    assert {(finding.access, finding.line), finding.other[:3:2]} == {("write", 7), ("read", 8)}
    assert (finding.kind, finding.space, finding.variable) == ("race", "threadgroup", "tile")
    assert finding.count == 64
    assert ": kernel neighbour: " in str(finding)
    assert "put threadgroup_barrier(mem_flags::mem_threadgroup) between them" in str(caught.value)


def test_the_same_findings_every_time(library: metalsim.ShaderLibrary):
    runs = list[list[metalsim.Finding]]()
    for _ in range(3):
        with metalsim.collect_findings() as findings:
            library.neighbour(torch.zeros(640), threads=640, group_size=64)
            library.past_the_end(torch.zeros(8), threads=8)
        runs.append(findings)
    assert [finding.kind for finding in runs[0]] == ["race", "race", "bounds"]
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    ("check", "kinds"),
    [(True, {"race"}), ("races, bounds", {"race"}), (["bounds"], set[str]()), ((), set[str]())],
    ids=["all", "text", "bounds", "none"],
)
def test_only_the_chosen_checkers_watch(check: bool | str | list[str], kinds: set[str]):
    kernel = metalsim.compile_shader(SOURCE, check=check).neighbour
    with metalsim.collect_findings() as findings:
        kernel(torch.zeros(64), threads=64, group_size=64)
    assert {finding.kind for finding in findings} == kinds
    assert kernel.counters["threadgroup_bytes_stored"] == 256


def test_the_environment_chooses_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METALSIM_CHECK", "bounds,alignment")
    kernel = metalsim.compile_shader(SOURCE).neighbour
    kernel(torch.zeros(64), threads=64, group_size=64)
    assert kernel.findings == ()
    with pytest.raises(ValueError, match=r"check must be 0, 1 or names of races.*'speed'"):
        metalsim.compile_shader(SOURCE, check=["speed"])


def test_stores_out_of_bounds_leave_memory_as_it_was(library: metalsim.ShaderLibrary):
    storage = torch.full((40,), 5.0)
    with pytest.raises(metalsim.BoundsError):
        library.past_the_end(storage[8:16], threads=8)
    assert (storage[9:16] == torch.arange(7)).all()
    assert (storage[16:] == 5).all()


def test_an_access_to_no_memory_ends_its_thread_alone(library: metalsim.ShaderLibrary):
    out = torch.zeros(8)
    with metalsim.collect_findings() as findings:
        library.far_away(out, threads=8)
    assert [finding.kind for finding in findings] == ["bounds"]
    assert out.tolist() == [2, 2, 2, 0, 2, 2, 2, 2]


def test_lists_of_tensors(library: metalsim.ShaderLibrary):
    out, parts = torch.zeros(8), [torch.ones(8), torch.ones(9)]
    library.through_a_list(parts, out, 1, threads=8, arg_casts={2: "int32"})
    assert (out == 2).all()
    message = "read of 4 bytes at byte 36 of buffer 0, item 1, which has 36 bytes"
    with pytest.raises(metalsim.BoundsError, match=message):
        library.through_a_list(parts, out, 2, threads=8, arg_casts={2: "int32"})


def test_fresh_memory(library: metalsim.ShaderLibrary):
    """It stays fresh over several launches where none of them wrote."""
    out = metalsim.Fresh(torch.zeros(8))
    library.fill(out, threads=6)
    library.add_one(out, threads=6)
    with pytest.raises(metalsim.CheckError, match="uninitialized: read of 4 bytes at byte 24"):
        library.add_one(out, threads=8)
    library.add_one(torch.zeros(8), threads=8)
    with pytest.raises(metalsim.ArgumentError, match="expected a tensor or an array, not int"):
        metalsim.Fresh(3)


def test_padding_is_no_memory(library: metalsim.ShaderLibrary):
    library.vectors_of_three(torch.zeros(32, 4), threads=32, group_size=32)


def test_misaligned_vectors(library: metalsim.ShaderLibrary):
    out = torch.zeros(3)
    with metalsim.collect_findings() as findings:
        library.misaligned(out, torch.ones(16), threads=3)
    (finding,) = findings
    line = 1 + SOURCE[: SOURCE.index("const float4 four")].count("\n")
    assert (finding.kind, finding.line, finding.alignment) == ("alignment", line, 16)
    assert (finding.count, finding.thread) == (2, (1, 0, 0))
    assert out.tolist() == [1, 0, 0]
