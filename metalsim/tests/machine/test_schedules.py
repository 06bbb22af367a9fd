"""Orders of execution: barriers hold under all of them, seeds repeat, and a seed finds a race."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void transpose(device const float* in, device float* out,
                      uint t [[thread_index_in_threadgroup]],
                      uint g [[threadgroup_position_in_grid]]) {
  threadgroup float tile[16][17];
  for (uint round = 0; round < 4; ++round) {
    tile[t / 16][t % 16] = in[(g * 4 + round) * 256 + t];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    out[(g * 4 + round) * 256 + t] = tile[t % 16][t / 16];
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
}

kernel void racy(device uint* out, uint t [[thread_index_in_threadgroup]]) {
  threadgroup uint shared[64];
  shared[t] = t;
  out[t] = shared[63 - t];  // no barrier
}

kernel void arrival(device atomic_uint* next, device uint* order,
                    uint t [[thread_position_in_grid]]) {
  order[t] = atomic_fetch_add_explicit(next, 1u, memory_order_relaxed);
  order[t] += 0 * simd_sum(1u);
}

kernel void simd_exchange(device float* x, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float shared[64];
  for (uint i = 0; i < 8; ++i) {
    shared[t] = x[t];
    simdgroup_barrier(mem_flags::mem_threadgroup);
    x[t] = shared[t ^ 1] + simd_shuffle_xor(x[t], ushort(2));
    simdgroup_barrier(mem_flags::mem_threadgroup);
  }
}
"""
SCHEDULES = [(0, 1), (0, 2), (1, 1), (2, 1), (3, 2), (2**63 + 11, 1)]


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


@pytest.mark.parametrize(("seed", "workers"), SCHEDULES)
def test_barriers_hold(library: metalsim.ShaderLibrary, seed: int, workers: int):
    values = torch.randn(5, 4, 16, 16)
    out = torch.full_like(values, torch.nan)
    with metalsim.schedule(seed=seed, workers=workers):
        library.transpose(values, out, threads=5 * 256, group_size=256)
    assert torch.equal(out, values.transpose(2, 3))


@pytest.mark.parametrize(("seed", "workers"), SCHEDULES)
def test_simdgroup_barriers_hold(library: metalsim.ShaderLibrary, seed: int, workers: int):
    values = torch.randint(-3, 3, (64,)).float()
    expected, lanes = values.clone(), torch.arange(64)
    for _ in range(8):
        expected = expected[lanes ^ 1] + expected[lanes ^ 2]
    with metalsim.schedule(seed=seed, workers=workers):
        library.simd_exchange(values, threads=64, group_size=64)
    assert torch.equal(values, expected)


def arrival_order(library: metalsim.ShaderLibrary, seed: int) -> list[int]:
    following, order = torch.zeros(1, dtype=torch.int32), torch.zeros(512, dtype=torch.int32)
    with metalsim.schedule(seed=seed, workers=1):
        library.arrival(following, order, threads=512, group_size=64)
    return order.tolist()


def test_a_seed_repeats_and_differs_from_others(library: metalsim.ShaderLibrary):
    fixed = arrival_order(library, 0)
    assert fixed == list(range(512))
    orders = [arrival_order(library, seed) for seed in (1, 2, 3)]
    assert orders == [arrival_order(library, seed) for seed in (1, 2, 3)]
    assert len({tuple(order) for order in [fixed, *orders]}) == 4
    assert all(sorted(order) == fixed for order in orders)
    # Threadgroups change places too, not only the threads inside them.
    assert {min(order[64 * g : 64 * g + 64]) // 64 for order in orders for g in range(3)} != {
        0,
        1,
        2,
    }


def test_a_random_order_shows_a_missing_barrier(library: metalsim.ShaderLibrary):
    expected = list(range(63, -1, -1))
    results = []
    for seed in range(1, 6):
        out = torch.zeros(64, dtype=torch.int32)
        with metalsim.schedule(seed=seed):
            library.racy(out, threads=64, group_size=64)
        results.append(out.tolist())
    assert all(result != expected for result in results)
    assert len({tuple(result) for result in results}) > 1
