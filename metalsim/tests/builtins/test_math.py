"""Mathematical, integer, common, relational and geometric functions against numpy."""

from __future__ import annotations

import numpy
import pytest
import torch

import metalsim

UNARY = {
    "acos": (numpy.arccos, -1, 1), "asin": (numpy.arcsin, -1, 1), "atan": (numpy.arctan, -9, 9),
    "acosh": (numpy.arccosh, 1, 9), "asinh": (numpy.arcsinh, -9, 9),
    "atanh": (numpy.arctanh, -0.9, 0.9), "cos": (numpy.cos, -9, 9), "sin": (numpy.sin, -9, 9),
    "tan": (numpy.tan, -1.5, 1.5), "exp": (numpy.exp, -9, 9), "exp2": (numpy.exp2, -9, 9),
    "exp10": (lambda x: 10.0**x, -4, 4), "log": (numpy.log, 0.01, 9),
    "log2": (numpy.log2, 0.01, 9), "log10": (numpy.log10, 0.01, 9),
    "sinh": (numpy.sinh, -5, 5), "cosh": (numpy.cosh, -5, 5), "tanh": (numpy.tanh, -5, 5),
    "sqrt": (numpy.sqrt, 0, 9), "rsqrt": (lambda x: 1 / numpy.sqrt(x), 0.01, 9),
    "ceil": (numpy.ceil, -9, 9), "floor": (numpy.floor, -9, 9), "rint": (numpy.rint, -9, 9),
    "trunc": (numpy.trunc, -9, 9), "fabs": (numpy.abs, -9, 9), "abs": (numpy.abs, -9, 9),
    "round": (lambda x: numpy.copysign(numpy.floor(numpy.abs(x) + 0.5), x), -9, 9),
    "sinpi": (lambda x: numpy.sin(numpy.pi * x), -3, 3),
    "cospi": (lambda x: numpy.cos(numpy.pi * x), -3, 3),
    "tanpi": (lambda x: numpy.tan(numpy.pi * x), -0.4, 0.4),
    "fract": (lambda x: x - numpy.floor(x), -9, 9),
    "saturate": (lambda x: numpy.clip(x, 0, 1), -2, 2), "sign": (numpy.sign, -2, 2),
}  # fmt: skip
BINARY = {
    "pow": (numpy.power, 0.1), "powr": (numpy.power, 0.1), "atan2": (numpy.arctan2, -5),
    "fmod": (numpy.fmod, -5), "fmin": (numpy.fmin, -5), "fmax": (numpy.fmax, -5),
    "min": (numpy.fmin, -5), "max": (numpy.fmax, -5), "copysign": (numpy.copysign, -5),
    "fdim": (lambda x, y: numpy.maximum(x - y, 0), -5), "divide": (numpy.divide, 0.1),
    "step": (lambda x, y: (y >= x) * 1.0, -5),
}  # fmt: skip


def unary_kernel(name: str) -> str:
    return f"""
kernel void f_{name}(device const float* x, device float* single, device half* low,
                     device float4* vectors, uint i [[thread_position_in_grid]]) {{
  single[i] = {name}(x[i]);
  low[i] = {name}(half(x[i]));
  vectors[i] = {name}(float4(x[i], 1, x[i], 1).xyzw);
}}"""


def binary_kernel(name: str) -> str:
    return f"""
kernel void f_{name}(device const float* x, device const float* y, device float* single,
                     device half* low, device float2* vectors,
                     uint i [[thread_position_in_grid]]) {{
  single[i] = {name}(x[i], y[i]);
  low[i] = {name}(half(x[i]), half(y[i]));
  vectors[i] = {name}(float2(x[i], 1), y[i]);
}}"""


OTHERS = """
kernel void ternary(device const float* x, device const float* y, device const float* z,
                    device float* out, uint i [[thread_position_in_grid]]) {
  device float* o = out + 12 * i;
  o[0] = fma(x[i], y[i], z[i]);
  o[1] = clamp(x[i], -1.0f, 2.0f);
  o[2] = mix(x[i], y[i], 0.25f);
  o[3] = smoothstep(-2.0f, 2.0f, x[i]);
  o[4] = max3(x[i], y[i], z[i]);
  o[5] = min3(x[i], y[i], z[i]);
  o[6] = median3(x[i], y[i], z[i]);
  o[7] = clamp(float3(x[i], y[i], z[i]), 0.0f, 1.0f).y;
  o[8] = mix(float2(x[i]), float2(y[i]), 0.5f).x;
  o[9] = fmedian3(x[i], y[i], z[i]);
  o[10] = fast::exp(x[i]) + fast::max(x[i], y[i]);
  o[11] = precise::exp2(x[i]) + precise::divide(y[i], z[i]);
}

kernel void half_fma(device const half* x, device const half* y, device const half* z,
                     device half* out, uint i [[thread_position_in_grid]]) {
  out[i] = fma(x[i], y[i], z[i]);
}

kernel void parts(device float* out) {
  int exponent;
  float whole, cosine;
  out[0] = frexp(10.0f, exponent);
  out[1] = exponent;
  out[2] = modf(-3.75f, whole);
  out[3] = whole;
  out[4] = sincos(0.5f, cosine);
  out[5] = cosine;
  out[6] = ldexp(3.0f, 4);
  out[7] = ilogb(100.0f);
  out[8] = nextafter(1.0f, 2.0f);
}

kernel void neighbours(device const half* x, device half* up, device half* down, device half* same,
                       uint i [[thread_position_in_grid]]) {
  up[i] = nextafter(x[i], half(INFINITY));
  down[i] = nextafter(half2(x[i]), half2(-INFINITY)).y;
  same[i] = nextafter(x[i], x[i]);
}

kernel void fractions(device const float* x, device float* single, device half* low,
                      uint i [[thread_position_in_grid]]) {
  single[i] = fract(x[i]);
  low[i] = fract(half(x[i]));
}

kernel void saturated(device const ulong* x, device ulong* out) {
  out[0] = madsat(x[0], x[0], ulong(0));
  out[1] = madsat(x[0], ulong(1), ulong(1));
  out[2] = madsat(x[0], ulong(1), ulong(0));
}

kernel void relational(device int* out) {
  float nan = NAN, infinity = INFINITY;
  out[0] = isnan(nan) && !isnan(1.0f) && isnan(half(nan)) && !isnan(infinity);
  out[1] = isinf(-infinity) && !isinf(nan) && !isinf(FLT_MAX);
  out[2] = isfinite(1.0f) && !isfinite(infinity) && !isfinite(nan) && isnormal(1.0f) &&
           !isnormal(1e-40f);
  out[3] = signbit(-0.0f) && !signbit(0.0f);
  out[4] = all(float3(1) > 0.0f) && any(int2(0, 1) == 1) && !all(bool2(true, false)) &&
           !any(isnan(float2(1)));
  out[5] = select(1, 2, true) * 10 + select(3, 4, false);
  int3 chosen = select(int3(1, 2, 3), int3(4, 5, 6), bool3(true, false, true));
  out[6] = chosen.x * 100 + chosen.y * 10 + chosen.z;
  out[7] = isordered(1.0f, 2.0f) && isunordered(nan, 1.0f);
  out[8] = int(max(nan, 2.0f)) + int(max(2.0f, nan)) + int(min(nan, 3.0f)) + int(fmin(3.0f, nan));
}

kernel void geometric(device float* out) {
  float3 a(1, 2, 3), b(4, -5, 6);
  float3 c = cross(a, b);
  out[0] = c.x;
  out[1] = c.y;
  out[2] = c.z;
  out[3] = dot(a, b);
  out[4] = length(float2(3, 4));
  out[5] = distance(a, b);
  out[6] = normalize(float2(3, 4)).y;
  out[7] = reflect(float2(1, -1), float2(0, 1)).y;
  out[8] = length_squared(half2(3, 4));
  out[9] = faceforward(a, b, -b).x;
}

template <typename T>
kernel void integers(device const T* x, device const T* y, device T* out,
                     uint i [[thread_position_in_grid]]) {
  device T* o = out + 16 * i;
  o[0] = popcount(x[i]);
  o[1] = clz(x[i]);
  o[2] = ctz(x[i]);
  o[3] = reverse_bits(x[i]);
  o[4] = rotate(x[i], y[i]);
  o[5] = addsat(x[i], y[i]);
  o[6] = subsat(x[i], y[i]);
  o[7] = hadd(x[i], y[i]);
  o[8] = rhadd(x[i], y[i]);
  o[9] = mulhi(x[i], y[i]);
  o[10] = T(absdiff(x[i], y[i]));
  o[11] = extract_bits(x[i], 3u, 4u);
  o[12] = insert_bits(x[i], y[i], 2u, 4u);
  o[13] = max(x[i], y[i]);
  o[14] = clamp(min(x[i], y[i]), T(3), T(9));
  o[15] = madsat(x[i], y[i], T(1));
}
"""
INTEGER_TYPES = {
    "char": "int8",
    "uchar": "uint8",
    "short": "int16",
    "int": "int32",
    "long": "int64",
}
SOURCE = (
    "#include <metal_stdlib>\nusing namespace metal;\n"
    + "".join(map(unary_kernel, UNARY))
    + "".join(map(binary_kernel, BINARY))
    + OTHERS
    + "".join(
        f'template [[host_name("integers_{t}")]] [[kernel]] '
        f"decltype(integers<{t}>) integers<{t}>;\n"
        for t in INTEGER_TYPES
    )
)


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


def random_values(low: float, high: float, seed: int, count: int = 512) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, generator=generator) * (high - low) + low


def assert_close_in_ulps(got: torch.Tensor, exact: numpy.ndarray, ulps: float) -> None:
    """Within `ulps` steps of got's type, measured at the exact value (at least at 1/64)."""
    eps = torch.finfo(got.dtype).eps
    step = eps * 2.0 ** numpy.floor(numpy.log2(numpy.maximum(numpy.abs(exact), 1 / 64)))
    error = numpy.abs(got.double().numpy() - exact) / step
    assert error.max() <= ulps, (got[int(error.argmax())], exact[error.argmax()], error.max())


@pytest.mark.parametrize("name", UNARY)
def test_unary(library: metalsim.ShaderLibrary, name: str):
    function, low, high = UNARY[name]
    x = random_values(low, high, 1)
    single, halves, vectors = torch.zeros(512), torch.zeros(512).half(), torch.zeros(512, 4)
    getattr(library, f"f_{name}")(x, single, halves, vectors)
    assert_close_in_ulps(single, function(x.double().numpy()), 4)
    with numpy.errstate(all="ignore"):
        rounded = x.half().double().numpy()
        if low == 0.01:
            rounded = numpy.maximum(rounded, 0.01)
        exact = function(numpy.clip(rounded, low, high))
    kept = torch.from_numpy((rounded >= low) & (rounded <= high))
    assert_close_in_ulps(halves[kept], exact[kept.numpy()], 0.52)
    assert torch.equal(vectors[:, 0], single)
    assert torch.equal(vectors[:, 2], single)


@pytest.mark.parametrize("name", BINARY)
def test_binary(library: metalsim.ShaderLibrary, name: str):
    function, low = BINARY[name]
    x, y = random_values(low, 5, 2), random_values(low, 5, 3)
    single, halves, vectors = torch.zeros(512), torch.zeros(512).half(), torch.zeros(512, 2)
    getattr(library, f"f_{name}")(x, y, single, halves, vectors)
    assert_close_in_ulps(single, function(x.double().numpy(), y.double().numpy()), 2)
    exact = function(x.half().double().numpy(), y.half().double().numpy())
    assert_close_in_ulps(halves, exact, 0.52)
    assert torch.equal(vectors[:, 0], single)


def test_ternary_and_namespaces(library: metalsim.ShaderLibrary):
    x, y, z = (random_values(-4, 4, seed) for seed in (4, 5, 6))
    out = torch.zeros(512, 12)
    library.ternary(x, y, z, out)
    a, b, c = (t.double().numpy() for t in (x, y, z))
    t = numpy.clip((a + 2) / 4, 0, 1)
    ordered = numpy.sort(numpy.stack([a, b, c]), axis=0)
    expected = [
        a * b + c, numpy.clip(a, -1, 2), a + (b - a) * 0.25, t * t * (3 - 2 * t), ordered[2],
        ordered[0], ordered[1], numpy.clip(b, 0, 1), (a + b) / 2, ordered[1],
        numpy.exp(a) + numpy.maximum(a, b), numpy.exp2(a) + b / c,
    ]  # fmt: skip
    for column, exact in enumerate(expected):
        error = numpy.abs(out[:, column].double().numpy() - exact)
        scale = numpy.abs(exact) + numpy.abs(a) + numpy.abs(b)
        assert (error <= 4e-7 * scale).all(), column


def test_half_fma_rounds_once(library: metalsim.ShaderLibrary):
    generator = torch.Generator().manual_seed(7)
    x, y, z = (torch.randn(4096, generator=generator).half() for _ in "xyz")
    out = torch.zeros_like(x)
    library.half_fma(x, y, z, out)
    exact = x.double() * y.double() + z.double()
    assert torch.equal(out, exact.half())
    assert not torch.equal(out, x * y + z)


def test_parts_of_floats(library: metalsim.ShaderLibrary):
    out = torch.zeros(9)
    library.parts(out, threads=1)
    sine, cosine = numpy.sin(numpy.float32(0.5)), numpy.cos(numpy.float32(0.5))
    expected = [0.625, 4, -0.75, -3, sine, cosine, 48, 6, 1 + 2.0**-23]
    assert out.tolist() == pytest.approx(expected, rel=1e-7)


def test_neighbours_of_half(library: metalsim.ShaderLibrary):
    bits = numpy.arange(65536, dtype=numpy.uint16)
    x = bits.view(numpy.float16)
    up, down, same = (numpy.zeros_like(x) for _ in range(3))
    library.neighbours(x.copy(), up, down, same)
    infinity = numpy.float16("inf")
    with numpy.errstate(all="ignore"):
        numpy.testing.assert_array_equal(up, numpy.nextafter(x, infinity))
        numpy.testing.assert_array_equal(down, numpy.nextafter(x, -infinity))
    numpy.testing.assert_array_equal(same, x)


def test_fractions_stay_below_one(library: metalsim.ShaderLibrary):
    x = numpy.array([-1e-10, -5.96e-8, -0.0001, 2.75, -2.25, numpy.nan], numpy.float32)
    single, low = numpy.zeros(6, numpy.float32), numpy.zeros(6, numpy.float16)
    library.fractions(x, single, low)
    assert single[0] == 1 - 2.0**-24
    assert low[1] == low[2] == 1 - 2.0**-11
    assert single[3:5].tolist() == low[3:5].tolist() == [0.75, 0.75]
    assert numpy.isnan(single[5])
    assert numpy.isnan(low[5])


def test_madsat_of_the_largest_integers(library: metalsim.ShaderLibrary):
    out, largest = numpy.zeros(3, numpy.uint64), 2**64 - 1
    library.saturated(numpy.array([largest], numpy.uint64), out, threads=1)
    assert out.tolist() == [largest] * 3


def test_relational(library: metalsim.ShaderLibrary):
    out = torch.zeros(9, dtype=torch.int32)
    library.relational(out, threads=1)
    assert out.tolist() == [1, 1, 1, 1, 1, 23, 426, 1, 10]


def test_geometric(library: metalsim.ShaderLibrary):
    out = torch.zeros(10)
    library.geometric(out, threads=1)
    distance = numpy.sqrt(9 + 49 + 9)
    assert out.tolist() == pytest.approx([27, 6, -13, 12, 5, distance, 0.8, 1, 25, 1], rel=1e-6)


def expected_integers(x: int, y: int, bits: int, signed: bool) -> list[int]:
    """The functions of kernel `integers` in Python's unbounded integers."""
    mask = (1 << bits) - 1
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, mask)

    def wrap(value: int) -> int:
        value &= mask
        return value - (mask + 1) if signed and value > high else value

    text = f"{x & mask:0{bits}b}"
    turn = y & (bits - 1)
    field = x >> 3 & 15
    if signed and field > 7:
        field -= 16
    return [
        text.count("1"), bits - len(text.lstrip("0")),
        bits if x == 0 else len(text) - len(text.rstrip("0")), wrap(int(text[::-1], 2)),
        wrap((x & mask) << turn | (x & mask) >> (bits - turn)), min(max(x + y, low), high),
        min(max(x - y, low), high), x + y >> 1, x + y + 1 >> 1, wrap(x * y >> bits),
        wrap(abs(x - y)), field, wrap((x & ~60) | (y << 2 & 60)), max(x, y),
        min(max(min(x, y), 3), 9), min(max(x * y + 1, low), high),
    ]  # fmt: skip


@pytest.mark.parametrize("name", INTEGER_TYPES)
def test_integers(library: metalsim.ShaderLibrary, name: str):
    dtype = getattr(torch, INTEGER_TYPES[name])
    info = torch.iinfo(dtype)
    numbers = [0, 1, 2, 5, 9, 77, info.max, info.max - 1, info.min, info.min + 1, info.max // 3]
    pairs = [(x, y) for x in numbers for y in numbers]
    x, y = (torch.tensor([pair[side] for pair in pairs], dtype=dtype) for side in (0, 1))
    out = torch.zeros(len(pairs), 16, dtype=dtype)
    getattr(library, f"integers_{name}")(x, y, out, threads=len(pairs))
    for row, pair in zip(out.tolist(), pairs, strict=True):
        assert row == expected_integers(*pair, info.bits, info.min < 0), pair
