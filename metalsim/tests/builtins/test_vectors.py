"""Vectors: constructors, swizzles, operators, packed forms, as_type."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

kernel void constructors(device float4* out) {
  float2 two(1, 2);
  float3 three(two, 3.0f);
  out[0] = float4(7);
  out[1] = float4(two, 3, 4);
  out[2] = float4(1, two, 4.0h);
  out[3] = float4(0, 1, two);
  out[4] = float4(three, 9);
  out[5] = float4(9, three);
  out[6] = float4(two, two);
  out[7] = float4(int4(1, -2, 3, -4));
  out[8] = float4(half4(0.1h, 0.2h, 0.3h, 0.4h));
  out[9] = 5;
  vec<float, 4> same = out[1];
  out[10] = same;
  float4 elements;
  for (int i = 0; i < 4; ++i) elements[i] = i * i;
  out[11] = elements;
}

kernel void swizzles(device float4* out) {
  float4 v(1, 2, 3, 4);
  out[0] = v.wzyx;
  out[1] = v.xxyy;
  out[2] = float4(v.xz, v.yw);
  out[3] = v.rgba + v.bgra;
  float4 w = 0;
  w.xz = v.yw;
  out[4] = w;
  w.wzyx = v;
  out[5] = w;
  w.xy = w.yx;
  out[6] = w;
  w.xz *= 10.0f;
  out[7] = w;
  float4 a = 0, b = v;
  a.xw = b.xw;  // two swizzles of one type: only these elements move
  out[8] = a;
  float2 t(5, 6);
  t.xy = t.yx;
  float3 u(v.zyx);
  out[9] = float4(t, u.zy);
  u.zx = max(u.xy, 2.5f);
  out[10] = float4(u, dot(v.xy, v.zw));
  w.y += v.w;
  w.r = -1;
  out[11] = w;
}

kernel void operators(device int4* out, device float4* real) {
  int4 a(7, -8, 9, 10), b(2, 3, -4, 5);
  out[0] = a + b;
  out[1] = a - b;
  out[2] = a * b;
  out[3] = a / b;
  out[4] = a % b;
  out[5] = (a & b) | (a ^ 3);
  out[6] = a << 2;
  out[7] = a >> int4(1);
  out[8] = -a + ~b;
  out[9] = int4(a > b);
  out[10] = int4((a == 7) || (b < 0));
  out[11] = int4(!(a != b));
  a += 1;
  a *= b;
  out[12] = a++;
  out[13] = --a;
  out[14] = select(a, b, a > b);
  char4 narrow = char4(100) + char4(100);
  out[15] = int4(narrow);
  real[0] = 2 * float4(1, 2, 3, 4) - 1;
  real[1] = 1 / float4(1, 2, 4, 8);
  real[2] = float4(half4(2048.0h) + half4(1.0h));
  float4 r(1, 2, 3, 4);
  r.xyz /= float3(2);
  r.zw -= 1;
  real[3] = r;
}

struct Row { packed_float3 position; float weight; };
kernel void packed(device Row* rows, device packed_half4* halves, device float3* out,
                   uint i [[thread_position_in_grid]]) {
  float3 p = rows[i].position;
  out[i] = p * rows[i].weight;
  rows[i].position = float3(i) + rows[i].position.zyx;
  rows[i].position.y = -1;
  rows[i].weight = dot(rows[i].position, float3(1)) + cross(p, rows[i].position).x * 0;
  rows[i].position = select(rows[i].position, p.xyz, bool3(false));
  halves[i] = packed_half4(half4(float4(p, 1)));
}

kernel void bits(device uint* out) {
  out[0] = as_type<uint>(1.0f);
  out[1] = as_type<uint>(half2(1.0h, -2.0h));
  out[2] = as_type<ushort>(bfloat(1.0f));
  uint2 pair = as_type<uint2>(half4(1, 2, 3, 4));
  out[3] = pair.x;
  out[4] = pair.y;
  out[5] = uint(as_type<float>(0x40490FDBu) * 1000);
  out[6] = as_type<uchar4>(0x04030201u).z;
  float4 v(1, 2, 3, 4);
  out[7] = as_type<ulong>(v.xy) >> 32;
  out[8] = sizeof(float3) + 100 * sizeof(packed_float3) + 10000 * alignof(half4);
  out[9] = as_type<uint4>(v).w;
}

kernel void shifts(device const uint4* x, device const uint4* amounts, device uint4* left,
                   device uint4* right, device char2* narrow, uint i [[thread_position_in_grid]]) {
  left[i] = x[i] << amounts[i];
  right[i] = x[i] >> amounts[i];
  narrow[i] = char2(3, -128) << char2(9, 8);
  narrow[i] >>= 8;
}

kernel void wide(device float* out) {
  vec<float, 8> v(1.0f);
  for (int i = 0; i < 8; ++i) v[i] += i;
  v = v * 2.0f;
  array<float, 3> a = {{1, 2, 3}};
  float sum = 0;
  for (float x : a) sum += x;
  for (int i = 0; i < 8; ++i) out[i] = v[i] + sum;
}

constant constexpr float4 TABLE[2] = {float4(1, 2, 3, 4), float4(5, 6, 7, 8)};
kernel void constants(device float* out, uint i [[thread_position_in_grid]]) {
  out[i] = TABLE[i / 4][i % 4];
}
"""


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


def run(
    kernel: metalsim.Kernel, rows: int, dtype: torch.dtype = torch.float32
) -> list[list[float]]:
    out = torch.zeros(rows, 4, dtype=dtype)
    kernel(out, threads=1)
    return out.tolist()


def test_constructors(library: metalsim.ShaderLibrary):
    halves = torch.tensor([0.1, 0.2, 0.3, 0.4]).half().tolist()
    assert run(library.constructors, 12) == [
        [7, 7, 7, 7], [1, 2, 3, 4], [1, 1, 2, 4], [0, 1, 1, 2], [1, 2, 3, 9], [9, 1, 2, 3],
        [1, 2, 1, 2], [1, -2, 3, -4], halves, [5, 5, 5, 5], [1, 2, 3, 4], [0, 1, 4, 9],
    ]  # fmt: skip


def test_swizzles(library: metalsim.ShaderLibrary):
    assert run(library.swizzles, 12) == [
        [4, 3, 2, 1], [1, 1, 2, 2], [1, 3, 2, 4], [4, 4, 4, 8], [2, 0, 4, 0], [4, 3, 2, 1],
        [3, 4, 2, 1], [30, 4, 20, 1], [1, 0, 0, 4], [6, 5, 1, 2], [2.5, 2, 3, 11], [-1, 8, 20, 1],
    ]  # fmt: skip


def test_operators(library: metalsim.ShaderLibrary):
    out, real = torch.zeros(16, 4, dtype=torch.int32), torch.zeros(4, 4)
    library.operators(out, real, threads=1)
    assert out.tolist() == [
        [9, -5, 5, 15], [5, -11, 13, 5], [14, -24, -36, 50], [3, -2, -2, 2], [1, -2, 1, 0],
        [6, -5, 10, 9], [28, -32, 36, 40], [3, -4, 4, 5], [-10, 4, -6, -16], [1, 0, 1, 1],
        [1, 0, 1, 0], [0, 0, 0, 0], [16, -21, -40, 55], [16, -21, -40, 55], [2, -21, -40, 5],
        [-56, -56, -56, -56],
    ]  # fmt: skip
    assert real.tolist() == [[1, 3, 5, 7], [1, 0.5, 0.25, 0.125], [2048] * 4, [0.5, 1, 0.5, 3]]


def test_packed_vectors_have_no_padding(library: metalsim.ShaderLibrary):
    rows = torch.arange(16, dtype=torch.float32).reshape(4, 4)
    halves, out = torch.zeros(4, 4, dtype=torch.float16), torch.zeros(4, 4)
    before = rows.clone()
    library.packed(rows, halves, out, threads=4)
    assert torch.equal(out[:, :3], before[:, :3] * before[:, 3:])
    assert torch.equal(halves[:, :3], before[:, :3].half())
    index = torch.arange(4.0)
    expected = before[:, [2, 1, 0, 3]] + torch.stack([index, index, index, 0 * index], 1)
    expected[:, 1] = -1
    expected[:, 3] = expected[:, :3].sum(1)
    assert torch.equal(rows, expected)


def test_as_type(library: metalsim.ShaderLibrary):
    out = torch.zeros(10, dtype=torch.int32)
    library.bits(out, threads=1)
    expected = [0x3F800000, 0xC0003C00, 0x3F80, 0x40003C00, 0x44004200, 3141, 3]
    expected += [0x40000000, 16 + 1200 + 80000, 0x40800000]
    assert [value & 0xFFFFFFFF for value in out.tolist()] == expected


def test_long_vectors_and_arrays(library: metalsim.ShaderLibrary):
    out = torch.zeros(8)
    library.wide(out, threads=1)
    assert out.tolist() == [2.0 * (i + 1) + 6 for i in range(8)]


def test_program_constants(library: metalsim.ShaderLibrary):
    out = torch.zeros(8)
    library.constants(out)
    assert out.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize(
    "statement",
    ["float4 a = half4(1);", "float3 a = float4(1);", "auto a = float4(1) + half4(1);",
     "float2 a(1); a.xx = float2(1).xy + float3(1);"],
)  # fmt: skip
def test_mixed_types_are_refused_as_in_metal(compiler: str, statement: str):
    with pytest.raises(SyntaxError, match="program_source:"):
        metalsim.compile_shader(f"using namespace metal; kernel void f() {{ {statement} }}")


@pytest.mark.parametrize("check", [False, True])
def test_shifts_take_the_low_bits_of_the_amount(compiler: str, check: bool):
    library = metalsim.compile_shader(SOURCE, check=check)
    x = np.random.default_rng(0).integers(0, 2**32, (64, 4), np.uint32)
    amounts = np.arange(256, dtype=np.uint32).reshape(64, 4)
    left, right = np.zeros_like(x), np.zeros_like(x)
    narrow = np.zeros((64, 2), np.int8)
    library.shifts(x, amounts, left, right, narrow, threads=64)
    np.testing.assert_array_equal(left, x << (amounts & 31))
    np.testing.assert_array_equal(right, x >> (amounts & 31))
    assert narrow[0].tolist() == [6, -128]
