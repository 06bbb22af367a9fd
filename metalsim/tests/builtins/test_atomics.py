"""Atomics on device and threadgroup memory, from many threadgroups at once."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
#include <metal_atomic>
using namespace metal;

kernel void updates(device const int* values, device atomic_int* out,
                    uint i [[thread_position_in_grid]]) {
  const int v = values[i];
  atomic_fetch_add_explicit(&out[0], v, memory_order_relaxed);
  atomic_fetch_sub_explicit(&out[1], v, memory_order_relaxed);
  atomic_fetch_and_explicit(&out[2], ~v, memory_order_relaxed);
  atomic_fetch_or_explicit(&out[3], v, memory_order_relaxed);
  atomic_fetch_xor_explicit(&out[4], v, memory_order_relaxed);
  atomic_fetch_min_explicit(&out[5], v, memory_order_relaxed);
  atomic_fetch_max_explicit(&out[6], v, memory_order_relaxed);
  const int loaded = atomic_load_explicit(&out[7], memory_order_relaxed);
  atomic_store_explicit(&out[7], loaded, memory_order_relaxed);
}

kernel void real(device atomic_float* out, uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(out, 0.5f, memory_order_relaxed);
}

kernel void tickets(device atomic_uint& next, device uint* taken) {
  const uint mine = atomic_fetch_add_explicit(&next, 1u, memory_order_relaxed);
  taken[mine] += 1;
}

kernel void compare(device atomic_uint* out, uint i [[thread_position_in_grid]]) {
  uint before = atomic_load_explicit(out, memory_order_relaxed);
  while (!atomic_compare_exchange_weak_explicit(out, &before, before * 3 + 1,
                                                memory_order_relaxed, memory_order_relaxed)) {
  }
}

kernel void histogram(device const uchar* values, device uint* out,
                      uint i [[thread_position_in_grid]],
                      uint t [[thread_index_in_threadgroup]]) {
  threadgroup atomic_uint bins[4];
  threadgroup atomic<uint> last;
  if (t < 4) atomic_store_explicit(&bins[t], 0u, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  atomic_fetch_add_explicit(&bins[values[i]], 1, memory_order_relaxed);
  atomic_exchange_explicit(&last, t, memory_order_relaxed);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (t < 4) out[i / 64 * 4 + t] = atomic_load_explicit(&bins[t], memory_order_relaxed);
}

kernel void wide(device atomic_ulong* out, uint i [[thread_position_in_grid]]) {
  atomic_max_explicit(&out[0], (ulong(i) << 40) + 1, memory_order_relaxed);
  atomic_min_explicit(&out[1], (ulong(i) << 40) + 1, memory_order_relaxed);
}
"""


@pytest.fixture(params=[False, True], ids=["fast", "check"])
def library(request: pytest.FixtureRequest, compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=request.param)


def test_every_update(library: metalsim.ShaderLibrary):
    values = torch.randint(1, 1 << 20, (1000,), dtype=torch.int32)
    out = torch.tensor([0, 0, -1, 0, 0, 2**31 - 1, -(2**31), 42], dtype=torch.int32)
    library.updates(values, out, threads=1000, group_size=64)
    numbers = values.tolist()
    together, either = 0, 0
    for number in numbers:
        together, either = together | number, either ^ number
    total = sum(numbers)
    expected = [total, -total, ~together, together, either, min(numbers), max(numbers), 42]
    assert out.tolist() == expected


def test_float_addition(library: metalsim.ShaderLibrary):
    out = torch.zeros(1)
    library.real(out, threads=2000, group_size=128)
    assert out.item() == 1000.0


def test_each_ticket_is_given_once(library: metalsim.ShaderLibrary):
    following, taken = torch.zeros(1, dtype=torch.int32), torch.zeros(777, dtype=torch.int32)
    with metalsim.schedule(seed=3):
        library.tickets(following, taken, threads=777, group_size=50)
    assert following.item() == 777
    assert (taken == 1).all()


def test_compare_exchange(library: metalsim.ShaderLibrary):
    out, expected = torch.zeros(1, dtype=torch.int32), 0
    library.compare(out, threads=300, group_size=32)
    for _ in range(300):
        expected = (expected * 3 + 1) & 0xFFFFFFFF
    assert out.item() & 0xFFFFFFFF == expected


def test_threadgroup_atomics(library: metalsim.ShaderLibrary):
    values = torch.randint(0, 4, (256,), dtype=torch.uint8)
    out = torch.zeros(4, 4, dtype=torch.int32)
    library.histogram(values, out, threads=256, group_size=64)
    assert out.tolist() == [torch.bincount(v, minlength=4).tolist() for v in values.reshape(4, 64)]


def test_64_bits(library: metalsim.ShaderLibrary):
    out = torch.tensor([0, 2**62])
    library.wide(out, threads=100, group_size=32)
    assert out.tolist() == [(99 << 40) + 1, 1]
