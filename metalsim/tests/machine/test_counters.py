"""Counters of checking builds, exact on kernels that can be counted by hand."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void copy(device const float* in, device float* out, constant float& scale,
                 uint i [[thread_position_in_grid]]) {
  out[i] = in[i] * scale;
}

kernel void vectors(device const half4* in, device half4* out, device const char* bytes,
                    device long* wide, uint i [[thread_position_in_grid]]) {
  out[i] = in[i];
  wide[i] = bytes[i];
}

kernel void shared(device const float* in, device float* out,
                   uint t [[thread_index_in_threadgroup]], uint i [[thread_position_in_grid]]) {
  threadgroup float tile[64];
  tile[t] = in[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  const float other = tile[t ^ 1];
  threadgroup_barrier(mem_flags::mem_none);
  simdgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = other;
}

kernel void collectives(device float* x, uint i [[thread_position_in_grid]]) {
  float v = x[i];
  v += simd_shuffle_xor(v, ushort(1));
  v += simd_shuffle_down(v, ushort(1));
  v = simd_sum(v) + simd_prefix_exclusive_sum(v);
  v += simd_any(v > 0) + quad_broadcast(v, ushort(1));
  x[i] = exp(v) + fast::exp2(v) + tanh(v) + sqrt(v);
}

kernel void matrices(device const half* a, device const half* b, device float* c) {
  simdgroup_half8x8 ma, mb;
  simdgroup_float8x8 mc = make_filled_simdgroup_matrix<float, 8, 8>(0.0f);
  simdgroup_load(ma, a, 8);
  for (int i = 0; i < 5; ++i) {
    simdgroup_load(mb, b, 8);
    simdgroup_multiply_accumulate(mc, ma, mb, mc);
  }
  simdgroup_store(mc, c, 8);
}

kernel void private_arrays(device float* x, constant int& n, uint i [[thread_position_in_grid]]) {
  float scratch[16];
  for (int j = 0; j < n; ++j) scratch[j % 16] = x[i] + j;
  x[i] = scratch[(n + i) % 16 % n];
}

kernel void updates(device atomic_int* x) {
  atomic_fetch_add_explicit(x, 1, memory_order_relaxed);
}
"""


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=())


def counters(kernel: metalsim.Kernel) -> dict[str, int]:
    """The counters of the last launch that are not zero."""
    return {name: count for name, count in kernel.counters.items() if count}


@pytest.mark.parametrize("workers", [1, 2])
def test_bytes_by_address_space(library: metalsim.ShaderLibrary, workers: int):
    kernel = library.copy
    with metalsim.schedule(workers=workers):
        kernel(torch.randn(100), torch.zeros(100), 2.0, threads=100, group_size=32)
    assert counters(kernel) == {
        "device_bytes_loaded": 400,
        "device_bytes_stored": 400,
        "constant_bytes_loaded": 400,
    }


def test_bytes_by_type(library: metalsim.ShaderLibrary):
    kernel = library.vectors
    halves, integers = torch.randn(10, 4).half(), torch.arange(10, dtype=torch.int8)
    kernel(
        halves, torch.zeros_like(halves), integers, torch.zeros(10, dtype=torch.int64), threads=10
    )
    assert counters(kernel) == {"device_bytes_loaded": 90, "device_bytes_stored": 160}


def test_threadgroup_memory_and_barriers(library: metalsim.ShaderLibrary):
    """Two full groups and one of 32: barriers count once a threadgroup or simdgroup."""
    kernel = library.shared
    kernel(torch.randn(160), torch.zeros(160), threads=160, group_size=64)
    assert counters(kernel) == {
        "device_bytes_loaded": 640,
        "device_bytes_stored": 640,
        "threadgroup_bytes_loaded": 640,
        "threadgroup_bytes_stored": 640,
        "threadgroup_barriers": 6,
        "simdgroup_barriers": 5,
    }


def test_collectives_and_functions(library: metalsim.ShaderLibrary):
    kernel = library.collectives
    kernel(torch.randn(64), threads=64, group_size=64)
    assert counters(kernel) == {
        "device_bytes_loaded": 256,
        "device_bytes_stored": 256,
        "shuffles": 6,
        "reductions": 4,
        "votes": 2,
        "exponentials": 3 * 64,
        "square_roots": 64,
    }


def test_matrix_multiplies(library: metalsim.ShaderLibrary):
    kernel = library.matrices
    a, b, c = torch.randn(8, 8).half(), torch.randn(8, 8).half(), torch.zeros(8, 8)
    kernel(a, b, c, threads=96, group_size=32)
    counted = counters(kernel)
    assert counted["matrix_multiplies"] == 15
    assert counted["device_bytes_stored"] == 3 * 256
    # Nothing changes b in the loop, so a compiler may load it once.
    assert 3 * 256 <= counted["device_bytes_loaded"] <= 3 * 6 * 128


def test_private_memory_is_not_counted(library: metalsim.ShaderLibrary):
    kernel = library.private_arrays
    kernel(torch.randn(32), 1, threads=32, group_size=32)
    counted = counters(kernel)
    assert counted["device_bytes_stored"] == 128
    assert "threadgroup_bytes_stored" not in counted


def test_atomics(library: metalsim.ShaderLibrary):
    kernel, total = library.updates, torch.zeros(1, dtype=torch.int32)
    kernel(total, threads=70, group_size=32)
    assert total.item() == 70
    assert counters(kernel)["atomics"] >= 70


def test_counters_begin_again_with_each_launch(library: metalsim.ShaderLibrary):
    kernel = library.copy
    for count in (10, 7):
        kernel(torch.randn(count), torch.zeros(count), 2.0, threads=count)
        assert counters(kernel)["device_bytes_loaded"] == 4 * count
