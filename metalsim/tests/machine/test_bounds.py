"""Accesses outside what is bound: errors in checking builds, with buffer, offset and thread."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void read_after(device const float* in [[buffer(0)]], device float* out [[buffer(1)]],
                       uint i [[thread_position_in_grid]]) {
  out[i] = in[i + 1];
}

kernel void write_after(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  out[i * 2] = 1;
}

kernel void write_before(device float* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  out[int(i) - 1] = 1;
}

kernel void far_away(device float* out [[buffer(0)]]) { out[1ul << 40] = 1; }

kernel void threadgroup_array(device float* out [[buffer(0)]],
                              uint t [[thread_index_in_threadgroup]],
                              uint g [[threadgroup_position_in_grid]]) {
  threadgroup float first[32], second[32];
  first[t] = t;
  second[t + g] = t;  // over the end in threadgroup 1
  out[g * 32 + t] = first[t];
}

kernel void half_outside(device const float4* in [[buffer(0)]], device float4* out [[buffer(1)]],
                         uint i [[thread_position_in_grid]]) {
  out[i] = in[i];
}

kernel void matrix_load(device const float* in [[buffer(0)]], device float* out [[buffer(1)]]) {
  simdgroup_float8x8 m;
  simdgroup_load(m, in, 9);
  simdgroup_store(m, out, 8);
}

constant bool biased [[function_constant(0)]];
kernel void optional(device float* out [[buffer(0)]], constant int& use [[buffer(1)]],
                     constant float& bias [[buffer(2), function_constant(biased)]],
                     device const float* extra [[buffer(3)]],
                     uint i [[thread_position_in_grid]]) {
  out[i] = 1;
  if (use & 1) out[i] += bias;
  if (use & 2) out[i] += extra[i];
}
"""


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=True, function_constants={"biased": False})


def test_read_past_the_end(library: metalsim.ShaderLibrary):
    values, out = torch.zeros(40), torch.zeros(40)
    message = "program_source:7: kernel read_after: out of bounds: read of 4 bytes at byte 160 of"
    with pytest.raises(metalsim.BoundsError, match=message) as caught:
        library.read_after(values, out, threads=40, group_size=32)
    assert "by thread (7, 0, 0) of threadgroup (1, 0, 0)" in str(caught.value)


def test_reads_inside_pass(library: metalsim.ShaderLibrary):
    values, out = torch.randn(41), torch.zeros(40)
    library.read_after(values, out, threads=40, group_size=32)
    assert torch.equal(out, values[1:])


def test_a_view_ends_where_it_ends(library: metalsim.ShaderLibrary):
    """Memory of the same tensor outside the view is not the kernel's."""
    values, out = torch.zeros(100), torch.zeros(40)
    with pytest.raises(metalsim.BoundsError, match=r"byte 160 of buffer 0"):
        library.read_after(values[10:50], out, threads=40)


def test_writes(library: metalsim.ShaderLibrary):
    storage = torch.zeros(100)
    with pytest.raises(metalsim.BoundsError, match=r"write of 4 bytes .* byte 64 of buffer 0"):
        library.write_after(storage[:16], threads=16)
    assert (storage[16:] == 0).all()
    with pytest.raises(metalsim.BoundsError, match="4 bytes in front of buffer 0"):
        library.write_before(storage[50:60], threads=10)
    with pytest.raises(metalsim.BoundsError, match="write of 4 bytes"):
        library.far_away(storage, threads=1)


def test_threadgroup_arrays(library: metalsim.ShaderLibrary):
    out = torch.zeros(64)
    with pytest.raises(metalsim.BoundsError) as caught:
        library.threadgroup_array(out, threads=64, group_size=32)
    assert "byte 128 of threadgroup variable second, which has 128" in str(caught.value)
    assert "by thread (31, 0, 0) of threadgroup (1, 0, 0)" in str(caught.value)


def test_vectors_that_stick_out(library: metalsim.ShaderLibrary):
    with pytest.raises(metalsim.BoundsError, match=r"byte \d+ of buffer 0, which has 24"):
        library.half_outside(torch.zeros(6), torch.zeros(8), threads=2)


def test_matrix_loads(library: metalsim.ShaderLibrary):
    out = torch.zeros(64)
    library.matrix_load(torch.zeros(8 * 9), out, threads=32, group_size=32)
    with pytest.raises(metalsim.BoundsError, match=r"buffer 0, which has 280"):
        library.matrix_load(torch.zeros(70), out, threads=32, group_size=32)


def test_unbound_buffers(library: metalsim.ShaderLibrary):
    out = torch.zeros(8)
    library.optional(out, [0], threads=8, arg_casts={1: "int32"})
    assert (out == 1).all()
    with pytest.raises(metalsim.BoundsError, match=r"buffer 3, which is not bound"):
        library.optional(out, [2], threads=8, arg_casts={1: "int32"})
