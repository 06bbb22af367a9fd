"""half and bfloat: rounding, conversions, limits."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;

template <typename T>
kernel void arithmetic(device const T* a, device const T* b, device T* out,
                       uint i [[thread_position_in_grid]]) {
  out[6 * i] = a[i] + b[i];
  out[6 * i + 1] = a[i] - b[i];
  out[6 * i + 2] = a[i] * b[i];
  out[6 * i + 3] = a[i] / b[i];
  out[6 * i + 4] = a[i] * b[i] + a[i];
  out[6 * i + 5] = (a[i] + b[i]) - a[i];
}
template [[host_name("arithmetic_half")]] [[kernel]] decltype(arithmetic<half>) arithmetic<half>;
template [[host_name("arithmetic_bfloat")]] [[kernel]]
decltype(arithmetic<bfloat>) arithmetic<bfloat>;

kernel void conversions(device const float* in, device half* halves, device bfloat* bfloats,
                        device float* back, uint i [[thread_position_in_grid]]) {
  halves[i] = half(in[i]);
  bfloats[i] = bfloat(in[i]);
  back[i] = bfloats[i];
}

kernel void promotions(device float* out) {
  bfloat b = bfloat(1.5f);
  half h = 2.0h;
  out[0] = b + 1;            // bfloat
  out[1] = b + 1.0f;         // float
  out[2] = b * float(h);     // float
  out[3] = true ? h : 3.0f;  // float
  out[4] = -b;
  out[5] = 1.0bf / 3;
  b += 1.0f;
  b *= 2;
  out[6] = b;
  out[7] = is_same_v<decltype(h + h), half> && is_same_v<decltype(h + 1.0f), float>;
  out[8] = b > 2.0f && b == 5.0f && b != bfloat(4) && bool(b) && !bfloat(0.0f);
  out[9] = half(b) + static_cast<half>(1);
}

template <typename T>
kernel void from_integers(device const T* in, device bfloat* out,
                          uint i [[thread_position_in_grid]]) {
  out[i] = bfloat(in[i]);
}
template [[host_name("from_int")]] [[kernel]] decltype(from_integers<int>) from_integers<int>;
template [[host_name("from_long")]] [[kernel]] decltype(from_integers<long>) from_integers<long>;

kernel void limits(device float* out) {
  out[0] = numeric_limits<half>::max();
  out[1] = numeric_limits<half>::lowest();
  out[2] = numeric_limits<half>::epsilon();
  out[3] = numeric_limits<half>::infinity();
  out[4] = numeric_limits<bfloat>::max();
  out[5] = numeric_limits<bfloat>::min();
  out[6] = numeric_limits<float>::lowest();
  out[7] = numeric_limits<float>::denorm_min();
  out[8] = numeric_limits<float>::quiet_NaN();
  out[9] = HALF_MAX;
  out[10] = M_PI_F;
  out[11] = -INFINITY;
}

kernel void integer_limits(device long* out) {
  out[0] = numeric_limits<int>::min();
  out[1] = numeric_limits<uint>::max();
  out[2] = numeric_limits<short>::max();
  out[3] = numeric_limits<ushort>::lowest();
  out[4] = numeric_limits<char>::min();
  out[5] = numeric_limits<uchar>::max();
  out[6] = numeric_limits<long>::max();
  out[7] = numeric_limits<ulong>::digits;
  out[8] = sizeof(long) + 10 * sizeof(half) + 100 * sizeof(bfloat) + 1000 * sizeof(bool);
  out[9] = char(-1) < 0;
}
"""


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


@pytest.mark.parametrize(("name", "dtype"), [("half", torch.float16), ("bfloat", torch.bfloat16)])
def test_every_operation_rounds(library: metalsim.ShaderLibrary, name: str, dtype: torch.dtype):
    """torch rounds after each operation too; an excess of precision would show in the last two."""
    generator = torch.Generator().manual_seed(0)
    a = (torch.randn(4096, generator=generator) * 8).to(dtype)
    b = (torch.randn(4096, generator=generator) * 8).to(dtype)
    a[0], b[0] = 2048.0, 1.0  # half: a + b is a
    out = torch.full((4096, 6), torch.nan, dtype=dtype)
    getattr(library, f"arithmetic_{name}")(a, b, out, threads=4096)
    expected = torch.stack([a + b, a - b, a * b, a / b, a * b + a, a + b - a], dim=1)
    assert torch.equal(out, expected)


def test_conversions_match_torch(library: metalsim.ShaderLibrary):
    values = torch.cat(
        [
            torch.randn(2000, generator=torch.Generator().manual_seed(1)) * 1000,
            torch.tensor([0.0, -0.0, 1e-8, 6e-8, 6.1e-5, 65504.0, 65519.9, 65520.0, 1e30, 3.4e38]),
            torch.tensor(
                [float("inf"), float("-inf"), float("nan"), 1.00390625, 1.01171875, 1e-40]
            ),
        ]
    )
    halves = torch.zeros(len(values), dtype=torch.float16)
    bfloats = torch.zeros(len(values), dtype=torch.bfloat16)
    back = torch.zeros(len(values))
    library.conversions(values, halves, bfloats, back)
    assert torch.equal(halves.nan_to_num(7), values.half().nan_to_num(7))
    assert torch.equal(bfloats.nan_to_num(7), values.bfloat16().nan_to_num(7))
    assert torch.equal(back.nan_to_num(7), values.bfloat16().float().nan_to_num(7))
    assert bfloats.isnan().sum() == halves.isnan().sum() == 1


@pytest.mark.parametrize(("name", "bits"), [("from_int", 32), ("from_long", 64)])
def test_integers_become_bfloat_in_one_rounding(
    library: metalsim.ShaderLibrary, name: str, bits: int
):
    values = [0, 1, 255, 257, 2**24 + 2**16, 2**24 + 2**16 + 1, 2**24 + 3 * 2**16 - 1]
    values += [2 ** (bits - 2) + 2 ** (bits - 10) + 1, 2 ** (bits - 1) - 1]
    values += [-value - 1 for value in values]
    given = torch.tensor(values, dtype=torch.int32 if bits == 32 else torch.int64)
    out = torch.zeros(len(values), dtype=torch.bfloat16)
    getattr(library, name)(given, out)
    for value, result in zip(values, out.double().tolist(), strict=True):
        step = 2 ** max(abs(value).bit_length() - 8, 0)
        below, rest = divmod(abs(value), step)
        up = 2 * rest > step or (2 * rest == step and below % 2)
        assert abs(result) == (below + up) * step, value


def test_promotions(library: metalsim.ShaderLibrary):
    out = torch.zeros(10)
    library.promotions(out, threads=1)
    third = torch.tensor(1 / 3).bfloat16().item()
    assert out.tolist() == [2.5, 2.5, 3.0, 2.0, -1.5, third, 5.0, 1.0, 1.0, 6.0]


def test_limits(library: metalsim.ShaderLibrary):
    out = torch.zeros(12)
    library.limits(out, threads=1)
    half, bfloat, single = (torch.finfo(t) for t in (torch.float16, torch.bfloat16, torch.float32))
    infinity = float("inf")
    expected = [half.max, half.min, half.eps, infinity, bfloat.max, bfloat.tiny, single.min]
    assert out[:7].tolist() == expected
    assert out[7] == 2.0**-149
    assert out[8].isnan()
    assert out[9:].tolist() == [65504.0, torch.tensor(torch.pi).item(), -infinity]


def test_integer_limits(library: metalsim.ShaderLibrary):
    out = torch.zeros(10, dtype=torch.int64)
    library.integer_limits(out, threads=1)
    expected = [-(2**31), 2**32 - 1, 2**15 - 1, 0, -128, 255, 2**63 - 1, 64, 1228, 1]
    assert out.tolist() == expected


def test_float_does_not_become_bfloat_silently(compiler: str):
    """Metal's compiler refuses this too."""
    source = "kernel void f(device bfloat* x) { bfloat b = 1.0f; x[0] = b; }"
    with pytest.raises(SyntaxError, match="program_source:1:"):
        metalsim.compile_shader(source)
