"""Threadgroup memory: 32 KB, filled with NaN at the start of each threadgroup, one copy each."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void exactly_32_kb(device float* out, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float a[4096];
  threadgroup half b[8192];
  a[t] = t;
  b[t] = t;
  out[t] = a[t] + b[t];
}

kernel void too_much(device float* out, uint t [[thread_index_in_threadgroup]]) {
  threadgroup float keys[4096], values[2048];
  threadgroup half scores[4097];
  keys[t] = values[t] = scores[t] = t;
  out[t] = keys[t];
}

kernel void uninitialised(device float* f, device half* h, device bfloat* b, device int* i,
                          uint g [[threadgroup_position_in_grid]]) {
  threadgroup float a[4];
  threadgroup half c[4];
  threadgroup bfloat d[4];
  threadgroup int e[4];
  f[g] = a[3];
  h[g] = c[3];
  b[g] = d[3];
  i[g] = e[3];
  a[3] = c[3] = 1;
  d[3] = bfloat(1);
  e[3] = 1;
}

template <int N>
kernel void in_template(device uint* out, uint t [[thread_index_in_threadgroup]]) {
  threadgroup uint data[N], other[2][N];
  threadgroup uint single;
  data[t] = t;
  other[1][t] = 2 * t;
  if (t == 0) single = 7;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[t] = data[N - 1 - t] + other[1][t] + single;
}
template [[host_name("in_template_32")]] [[kernel]] decltype(in_template<32>) in_template<32>;
template [[host_name("in_template_48")]] [[kernel]] decltype(in_template<48>) in_template<48>;
"""


@pytest.fixture(params=[False, True], ids=["fast", "check"])
def library(request: pytest.FixtureRequest, compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=request.param)


def test_32_kb_fit(library: metalsim.ShaderLibrary):
    out = torch.zeros(64)
    kernel = library.exactly_32_kb
    kernel(out, threads=64, group_size=64)
    assert out.tolist() == [2.0 * t for t in range(64)]


def test_more_is_an_error_that_names_the_variables(library: metalsim.ShaderLibrary):
    with pytest.raises(metalsim.ThreadgroupMemoryError) as caught:
        library.too_much(torch.zeros(32), threads=32, group_size=32)
    message = str(caught.value)
    assert "32770 bytes is over the limit of 32768" in message
    assert "keys 16384 + values 8192 + scores 8194" in message


@pytest.mark.parametrize("workers", [1, 2])
def test_each_threadgroup_starts_with_nan(library: metalsim.ShaderLibrary, workers: int):
    real, low, brain = torch.zeros(6), torch.zeros(6).half(), torch.zeros(6).bfloat16()
    integers = torch.zeros(6, dtype=torch.int32)
    with metalsim.schedule(workers=workers), metalsim.collect_findings():
        library.uninitialised(real, low, brain, integers, threads=6, group_size=1)
    assert real.isnan().all()
    assert low.isnan().all()
    assert brain.isnan().all()
    assert (integers == -1).all()


@pytest.mark.parametrize("size", [32, 48])
def test_variables_of_a_template(library: metalsim.ShaderLibrary, size: int):
    out = torch.zeros(size, dtype=torch.int32)
    getattr(library, f"in_template_{size}")(out, threads=size, group_size=size)
    assert out.tolist() == [size - 1 - t + 2 * t + 7 for t in range(size)]


def test_private_arrays_must_fit_the_stack(compiler: str):
    """A thread has 64 KB for its own arrays; more is an error of the source, never a crash."""
    source = """
kernel void f(device float* x, constant int& n, uint i [[thread_position_in_grid]]) {
  float s[SIZE];
  for (int j = 0; j < n; ++j) s[j * 7919 % n] = x[i] + j;
  x[i] = s[i];
}"""
    x = torch.zeros(64)
    kernel = metalsim.compile_shader(source.replace("SIZE", "15000")).f
    kernel(x, 15000, threads=64, group_size=64, arg_casts={1: "int32"})
    assert x[0] == 0
    with pytest.raises(SyntaxError, match="frame size"):
        metalsim.compile_shader(source.replace("SIZE", "40000"))
