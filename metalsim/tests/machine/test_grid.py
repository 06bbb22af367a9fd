"""Where a thread stands: positions, sizes, smaller threadgroups at the edge, argument types."""

from __future__ import annotations

import itertools

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void positions(device uint* out [[buffer(0)]],
                      uint3 position [[thread_position_in_grid]],
                      uint3 in_group [[thread_position_in_threadgroup]],
                      uint3 group [[threadgroup_position_in_grid]],
                      uint3 size [[threads_per_threadgroup]],
                      ushort3 dispatched [[dispatch_threads_per_threadgroup]],
                      uint3 groups [[threadgroups_per_grid]],
                      uint3 grid [[threads_per_grid]],
                      uint index [[thread_index_in_threadgroup]],
                      ushort lane [[thread_index_in_simdgroup]],
                      uint simdgroup_index [[simdgroup_index_in_threadgroup]],
                      ushort simdgroups [[simdgroups_per_threadgroup]],
                      ushort quad_lane [[thread_index_in_quadgroup]],
                      uint quad [[quadgroup_index_in_threadgroup]],
                      uint width [[threads_per_simdgroup]]) {
  device uint* o = out + 25 * ((position.z * grid.y + position.y) * grid.x + position.x);
  const uint3 vectors[6] = {in_group, group, size, uint3(dispatched), groups, position};
  for (int v = 0; v < 6; ++v)
    for (int i = 0; i < 3; ++i) o[3 * v + i] = vectors[v][i];
  o[18] = index;
  o[19] = lane;
  o[20] = simdgroup_index;
  o[21] = simdgroups;
  o[22] = quad_lane;
  o[23] = quad;
  o[24] = width;
}

kernel void scalar_types(device int* out, ushort x [[thread_position_in_grid]],
                         ushort2 group [[threadgroup_position_in_grid]],
                         uint2 size [[threads_per_threadgroup]]) {
  out[x] = group.x * 100 + group.y * 10 + size.x;
}

kernel void edge_sums(device float* out, uint i [[thread_position_in_grid]],
                      uint t [[thread_index_in_threadgroup]],
                      uint size [[threads_per_threadgroup]]) {
  threadgroup float shared[64];
  shared[t] = float(i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  float total = 0;
  for (uint j = 0; j < size; ++j) total += shared[j];
  out[2 * i] = total;
  out[2 * i + 1] = simd_sum(float(i));
}
"""


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


@pytest.mark.parametrize("seed", [0, 2])
def test_positions(library: metalsim.ShaderLibrary, seed: int):
    grid, size = (11, 5, 3), (8, 3, 2)
    out = torch.full((3, 5, 11, 25), -1, dtype=torch.int32)
    with metalsim.schedule(seed=seed):
        library.positions(out, threads=grid, group_size=size)
    for z, y, x in itertools.product(range(3), range(5), range(11)):
        position = (x, y, z)
        group = [p // s for p, s in zip(position, size, strict=True)]
        inside = [p % s for p, s in zip(position, size, strict=True)]
        actual = [min(s, g - n * s) for s, g, n in zip(size, grid, group, strict=True)]
        index = (inside[2] * actual[1] + inside[1]) * actual[0] + inside[0]
        threads = actual[0] * actual[1] * actual[2]
        expected = [*inside, *group, *actual, *size, 2, 2, 2, *position]
        expected += [index, index % 32, index // 32, -(-threads // 32), index % 4, index // 4, 32]
        assert out[z, y, x].tolist() == expected, position


def test_scalar_and_vector_parameters(library: metalsim.ShaderLibrary):
    out = torch.zeros(10, dtype=torch.int32)
    library.scalar_types(out, threads=10, group_size=4)
    assert out.tolist() == [4] * 4 + [104] * 4 + [202] * 2


def test_barriers_and_collectives_in_edge_groups(library: metalsim.ShaderLibrary):
    out = torch.zeros(150, 2)
    library.edge_sums(out, threads=150, group_size=64)
    for start in range(0, 150, 64):
        numbers = torch.arange(start, min(start + 64, 150), dtype=torch.float32)
        rows = out[start : start + 64]
        assert (rows[:, 0] == numbers.sum()).all()
        simdgroups = [part.sum().expand(len(part)) for part in numbers.split(32)]
        assert torch.equal(rows[:, 1], torch.cat(simdgroups))


def test_the_largest_threadgroup(library: metalsim.ShaderLibrary):
    out = torch.zeros(1024, 25, dtype=torch.int32)
    library.positions(out, threads=(1024, 1, 1), group_size=(1024, 1, 1))
    assert out[:, 18].tolist() == list(range(1024))
