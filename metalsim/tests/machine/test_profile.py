"""Accesses of whole simdgroups and counters by line, exact on kernels that can be counted by
hand, the same in every schedule."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """#include <metal_stdlib>
using namespace metal;

template <int Stride>
void transpose(device const float* in, device float* out, threadgroup float* tile, uint t) {
  for (uint row = 0; row < 32; ++row)
    tile[row * Stride + t] = in[row * 32 + t];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  for (uint row = 0; row < 32; ++row)
    out[row * 32 + t] = tile[t * Stride + row];
}

kernel void conflicting(device const float* in, device float* out,
                        uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[32 * 33];
  transpose<32>(in, out, tile, t);
}

kernel void padded(device const float* in, device float* out,
                   uint t [[thread_index_in_threadgroup]]) {
  threadgroup float tile[32 * 33];
  transpose<33>(in, out, tile, t);
}

kernel void strided(device const float* in, device float* out, constant uint& stride,
                    uint t [[thread_position_in_grid]]) {
  const float value = in[t * stride];
  out[t] = value;
}

kernel void wide(device float4* out, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float4 tile[32];
  tile[t] = float4(t);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[t] = tile[t ^ 1];
  out[t] += tile[0];
}

kernel void uneven(device const float* in, device float* out,
                   uint t [[thread_position_in_grid]]) {
  float sum = 0;
  for (uint i = 0; i < t % 4; ++i)
    sum += in[i * 32 + t];
  sum = simd_sum(sum);
  for (uint i = 0; i < 2; ++i)
    out[i * 64 + t] = sum;
}

kernel void growing(device const float* in, device float* out, constant uint& rounds,
                    uint t [[thread_position_in_grid]]) {
  float sum = 0;
  for (uint i = 0; i < rounds; ++i) {
    if (t < 8 * (i + 1)) sum += in[i * 32 + t];
    sum = simd_sum(sum);
  }
  out[t] = sum;
}

kernel void work(device float* x, device atomic_uint* n, uint t [[thread_position_in_grid]]) {
  float v = exp(x[t]);
  v += log2(v) * rsqrt(v);
  v += simd_shuffle_xor(v, ushort(1));
  simdgroup_barrier(mem_flags::mem_none);
  v = simd_max(v) + sin(v);
  atomic_fetch_add_explicit(n, 1, memory_order_relaxed);
  x[t] = v;
}
"""


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=False, profile=True)


def lines(kernel: metalsim.Kernel) -> dict[int, dict[str, int]]:
    """The counters of the last launch by line."""
    return {at.line: dict(counters) for at, counters in kernel.line_counters if at}


@pytest.mark.parametrize(("name", "conflicts"), [("conflicting", 32 * 31), ("padded", 0)])
def test_bank_conflicts_of_a_transpose(library: metalsim.ShaderLibrary, name: str, conflicts: int):
    kernel = getattr(library, name)
    matrix, out = torch.randn(32, 32), torch.zeros(32, 32)
    kernel(matrix, out, threads=32, group_size=32)
    assert torch.equal(out, matrix.T)
    counted = lines(kernel)
    assert counted[7] == {
        "device_bytes_loaded": 4096,
        "device_loads": 32,
        "device_lines_loaded": 32,
        "threadgroup_bytes_stored": 4096,
        "threadgroup_stores": 32,
    }
    assert counted[8] == {"threadgroup_barriers": 1}
    assert counted[10].get("bank_conflicts", 0) == conflicts
    assert (counted[10]["threadgroup_loads"], counted[10]["device_lines_stored"]) == (32, 32)


@pytest.mark.parametrize(
    ("stride", "touched"), [(0, 1), (1, 1), (2, 2), (8, 8), (32, 32), (100, 32)]
)
def test_lines_of_a_strided_load(library: metalsim.ShaderLibrary, stride: int, touched: int):
    kernel = library.strided
    values = torch.randn(100 * 64)
    kernel(values, torch.zeros(64), stride, threads=64, group_size=64)
    assert kernel.counters["device_loads"] == kernel.counters["device_stores"] == 2
    assert kernel.counters["device_lines_loaded"] == 2 * touched
    assert kernel.counters["device_lines_stored"] == 2
    assert kernel.counters["device_bytes_loaded"] == 256


def test_wide_loads_and_broadcasts_have_no_conflicts(library: metalsim.ShaderLibrary):
    kernel = library.wide
    kernel(torch.zeros(32, 4), threads=32, group_size=32)
    assert kernel.counters["bank_conflicts"] == 0
    assert kernel.counters["threadgroup_bytes_stored"] == 512
    assert kernel.counters["threadgroup_stores"] == 1
    assert kernel.counters["device_stores"] == 2
    assert kernel.counters["device_lines_stored"] == 8


def test_loops_of_unequal_length_are_aligned_by_occurrence(library: metalsim.ShaderLibrary):
    """Lanes load up to 3 times: three accesses of the simdgroup, not one a lane."""
    kernel = library.uneven
    kernel(torch.randn(128), torch.zeros(128), threads=32, group_size=32)
    loads = next(line for line in lines(kernel).values() if "device_loads" in line)
    assert loads["device_bytes_loaded"] == 4 * 8 * (0 + 1 + 2 + 3)
    assert (loads["device_loads"], loads["device_lines_loaded"]) == (3, 3)
    assert kernel.counters["device_stores"] == 2


def test_occurrences_begin_again_at_a_collective(library: metalsim.ShaderLibrary):
    """Lanes that joined later have executed the load less often, and still load together."""
    kernel = library.growing
    kernel(torch.randn(128), torch.zeros(32), 4, threads=32, group_size=32, arg_casts="int32")
    assert kernel.counters["device_bytes_loaded"] == 4 * (8 + 16 + 24 + 32)
    assert kernel.counters["device_loads"] == 4


def test_functions_and_collectives_by_line(library: metalsim.ShaderLibrary):
    kernel = library.work
    kernel(torch.rand(64), torch.zeros(1, dtype=torch.int32), threads=64, group_size=32)
    counted = list(lines(kernel).values())
    assert counted[0]["exponentials"] == 64
    assert counted[1] == {"logarithms": 64, "square_roots": 64}
    assert counted[2] == {"shuffles": 2}
    assert counted[3] == {"simdgroup_barriers": 2}
    assert counted[4] == {"reductions": 2, "trigonometric": 64}
    assert counted[5]["atomics"] >= 64


@pytest.mark.parametrize("name", ["conflicting", "uneven", "wide"])
def test_counts_do_not_depend_on_the_schedule(library: metalsim.ShaderLibrary, name: str):
    kernel = getattr(library, name)
    counted = set[str]()
    for seed in range(6):
        with metalsim.schedule(seed=seed, workers=1 + seed % 2):
            arguments = [torch.ones(128, 32), torch.zeros(128, 32)]
            kernel(*arguments[: 1 if name == "wide" else 2], threads=64, group_size=32)
        counted.add(repr((kernel.counters, kernel.line_counters)))
    assert len(counted) == 1


def test_lines_add_up_to_the_launch(library: metalsim.ShaderLibrary):
    kernel = library.conflicting
    kernel(torch.ones(32, 32), torch.zeros(32, 32), threads=32, group_size=32)
    sums = dict.fromkeys(kernel.counters, 0)
    for line in kernel.line_counters:
        for name, count in line.counters.items():
            sums[name] += count
    assert sums == kernel.counters


def test_without_profile_no_lines():
    library = metalsim.compile_shader(SOURCE, check=True)
    library.wide(torch.zeros(32, 4), threads=32, group_size=32)
    assert library.wide.line_counters == ()
    assert library.wide.counters["device_loads"] == 0


# (type of x, of out, statement, bytes and accesses of a simdgroup's loads of x)
VECTOR_LOADS = [
    ("float4", "float4", "float4 v = x[i]; out[i] = v * v + v;", 512, 1),
    ("float4", "float4", "out[i] = simd_sum(x[i]);", 512, 1),
    ("float3", "float3", "float3 v = x[i]; out[i] = v * v + v;", 384, 1),
    ("long2", "long2", "long2 v = x[i]; out[i] = v * v + v;", 512, 1),
    ("uint4", "uint4", "uint4 v = x[i]; out[i] = (v >> 4) & v;", 512, 1),
    ("half3", "half3", "half3 v = x[i]; out[i] = v * v + v;", 192, 1),
    ("float4", "float4", "out[i] = exp(x[i]);", 512, 1),
    ("float4", "float4", "out[i] = -x[i];", 512, 1),
    ("half4", "float4", "out[i] = float4(x[i]);", 256, 1),
    ("float4", "half4", "out[i] = half4(x[i]);", 512, 1),
    ("float4", "float4", "out[i] = float4(x[i].zw, 0, 0);", 256, 1),
    ("float4", "float", "out[i] = dot(x[i], x[i + 1]);", 1024, 2),
    ("float4", "float4", "out[i] = select(x[i], x[i + 1], bool4(true));", 1024, 2),
]


def vector_kernels() -> str:
    kernels = "#include <metal_stdlib>\nusing namespace metal;\n"
    for number, (element, result, statement, *_) in enumerate(VECTOR_LOADS):
        kernels += f"""
kernel void device_{number}(device const {element}* x, device {result}* out,
                            uint i [[thread_position_in_grid]]) {{ {statement} }}
kernel void threadgroup_{number}(device const {element}* in, device {result}* out,
                                 uint i [[thread_position_in_grid]]) {{
  threadgroup {element} x[33];
  x[i] = {element}(1);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  {statement}
}}"""
    return kernels


def test_each_read_of_a_vector_is_one_access(compiler: str):
    library = metalsim.compile_shader(vector_kernels(), profile=True)
    x, out = torch.zeros(33 * 32, dtype=torch.uint8), torch.zeros(33 * 32, dtype=torch.uint8)
    for number, (_, _, statement, loaded, loads) in enumerate(VECTOR_LOADS):
        for memory in ("device", "threadgroup"):
            kernel = getattr(library, f"{memory}_{number}")
            kernel(x, out, threads=32, group_size=32)
            counted = [kernel.counters[f"{memory}_{name}"] for name in ("bytes_loaded", "loads")]
            assert counted == [loaded, loads], (memory, statement)
