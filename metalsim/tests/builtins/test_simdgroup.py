"""simd_* and quad_* functions against numpy, lane by lane."""

from __future__ import annotations

import functools

import numpy
import pytest
import torch

import metalsim

LANE = numpy.arange(32)
SHUFFLES = {
    "simd_shuffle(x, ushort((7 * lane + 3) & 31))": (7 * LANE + 3) & 31,
    "simd_broadcast(x, ushort(5))": 0 * LANE + 5,
    "simd_broadcast_first(x)": 0 * LANE,
    "simd_shuffle_xor(x, ushort(9))": LANE ^ 9,
    "simd_shuffle_up(x, ushort(3))": numpy.where(LANE < 3, LANE, LANE - 3),
    "simd_shuffle_down(x, ushort(4))": numpy.where(LANE > 27, LANE, LANE + 4),
    "simd_shuffle_rotate_up(x, ushort(5))": (LANE - 5) % 32,
    "simd_shuffle_rotate_down(x, ushort(6))": (LANE + 6) % 32,
    "quad_shuffle(x, ushort((lane + 1) & 3))": LANE // 4 * 4 + (LANE + 1) % 4,
    "quad_broadcast(x, ushort(2))": LANE // 4 * 4 + 2,
    "quad_broadcast_first(x)": LANE // 4 * 4,
    "quad_shuffle_xor(x, ushort(3))": LANE ^ 3,
    "quad_shuffle_up(x, ushort(1))": numpy.where(LANE % 4 < 1, LANE, LANE - 1),
    "quad_shuffle_down(x, ushort(2))": numpy.where(LANE % 4 > 1, LANE, LANE + 2),
    "quad_shuffle_rotate_up(x, ushort(1))": LANE // 4 * 4 + (LANE - 1) % 4,
    "quad_shuffle_rotate_down(x, ushort(1))": LANE // 4 * 4 + (LANE + 1) % 4,
    "simd_shuffle_and_fill_up(x, x, ushort(2))": (LANE - 2) % 32,
    "simd_shuffle_and_fill_down(x, x, ushort(2), ushort(8))": LANE // 8 * 8 + (LANE + 2) % 8,
    "simd_shuffle_and_fill_down(x, x, 2, 8u)": LANE // 8 * 8 + (LANE + 2) % 8,
    "simd_shuffle_and_fill_up(x, x, 3, uint(8))": LANE // 8 * 8 + (LANE - 3) % 8,
    "simd_shuffle_and_fill_up(x, x, 3, 8)": LANE // 8 * 8 + (LANE - 3) % 8,
}


def scan(values: numpy.ndarray, combine: numpy.ufunc, neutral: int, inclusive: bool) -> list:
    running, out = values.dtype.type(neutral), []
    for value in values:
        after = combine(running, value)
        out.append(after if inclusive else running)
        running = after
    return out


def quads(function, values: numpy.ndarray) -> numpy.ndarray:
    """`function` of each group of four, over its four lanes."""
    return numpy.concatenate([numpy.broadcast_to(function(q), 4) for q in values.reshape(-1, 4)])


WHOLE = {
    "sum": numpy.add.reduce, "product": numpy.multiply.reduce, "min": numpy.min, "max": numpy.max,
}  # fmt: skip
BITS = {"and": numpy.bitwise_and, "or": numpy.bitwise_or, "xor": numpy.bitwise_xor}
SCANS = {
    f"prefix_{kind}_{name}": functools.partial(
        scan, combine=combine, neutral=neutral, inclusive=kind == "inclusive"
    )
    for kind in ("inclusive", "exclusive")
    for name, combine, neutral in (("sum", numpy.add, 0), ("product", numpy.multiply, 1))
}
TYPES = {
    "float": torch.float32, "half": torch.float16, "int": torch.int32, "char": torch.int8,
    "uchar": torch.uint8, "short": torch.int16, "long": torch.int64,
}  # fmt: skip
COMBINES = [*WHOLE, *SCANS]


def source() -> str:
    shuffles = "\n".join(f"  o[{i}] = {call};" for i, call in enumerate(SHUFFLES))
    combines = "\n".join(
        f"  o[{2 * i}] = simd_{name}(x);\n  o[{2 * i + 1}] = quad_{name}(x);"
        for i, name in enumerate(COMBINES)
    )
    bits = "\n".join(
        f"  o[{2 * i}] = simd_{name}(x);\n  o[{2 * i + 1}] = quad_{name}(x);"
        for i, name in enumerate(BITS)
    )
    text = f"""
#include <metal_stdlib>
#include <metal_simdgroup>
using namespace metal;

template <typename T>
kernel void shuffles(device const T* in, device T* out, uint lane [[thread_index_in_simdgroup]]) {{
  const T x = in[lane];
  device T* o = out + {len(SHUFFLES)} * lane;
{shuffles}
}}
template <typename T>
kernel void combines(device const T* in, device T* out, uint lane [[thread_index_in_simdgroup]]) {{
  const T x = in[lane];
  device T* o = out + {2 * len(COMBINES)} * lane;
{combines}
}}
template <typename T>
kernel void bits(device const T* in, device T* out, uint lane [[thread_index_in_simdgroup]]) {{
  const T x = in[lane];
  device T* o = out + {2 * len(BITS)} * lane;
{bits}
}}
{OTHER_KERNELS}"""
    for name in TYPES:
        kernels = ["shuffles", "combines"] + ["bits"] * (name not in ("float", "half"))
        for kernel in kernels:
            text += f'template [[host_name("{kernel}_{name}")]] [[kernel]] '
            text += f"decltype({kernel}<{name}>) {kernel}<{name}>;\n"
    return text


OTHER_KERNELS = """
kernel void vectors(device float4* x, device half3* h, uint lane [[thread_index_in_simdgroup]]) {
  x[lane] = simd_shuffle_xor(x[lane], ushort(1)) + simd_sum(x[lane]).wzyx;
  h[lane] = simd_max(h[lane]);
}

// Each line is once for swizzles and once for vectors.
kernel void swizzles(device const float4* x, device float2* out,
                     uint lane [[thread_index_in_simdgroup]]) {
  const float4 v = x[lane];
  const float2 xy = v.xy, zw = v.zw;
  device float2* o = out + 16 * lane;
  o[0] = simd_sum(v.xy);
  o[8] = simd_sum(xy);
  o[1] = quad_sum(v.xy);
  o[9] = quad_sum(xy);
  o[2] = quad_prefix_exclusive_product(v.xy);
  o[10] = quad_prefix_exclusive_product(xy);
  o[3] = simd_shuffle_xor(v.xy, 5);
  o[11] = simd_shuffle_xor(xy, 5);
  o[4] = simd_shuffle_and_fill_up(v.xy, v.xy, 3);
  o[12] = simd_shuffle_and_fill_up(xy, xy, 3);
  o[5] = simd_broadcast_first(v.xy) + quad_broadcast(v.xy, 2);
  o[13] = simd_broadcast_first(xy) + quad_broadcast(xy, 2);
  o[6] = select(v.xy, v.zw, v.xy > v.zw);
  o[14] = select(xy, zw, xy > zw);
  o[7] = quad_max(v.xy);
  o[15] = quad_max(xy);
}

kernel void votes(device const int* in, device int* out, uint lane [[thread_index_in_simdgroup]],
                  ushort quad_lane [[thread_index_in_quadgroup]]) {
  device int* o = out + 12 * lane;
  const bool yes = in[lane] > 0;
  o[0] = int(ulong(simd_vote::vote_t(simd_ballot(yes))));
  o[1] = simd_any(yes);
  o[2] = simd_all(yes);
  o[3] = simd_all(in[lane] > -100);
  o[4] = simd_any(in[lane] > 100);
  o[5] = simd_is_first();
  o[6] = int(ulong(simd_vote::vote_t(simd_active_threads_mask())));
  o[7] = quad_any(yes) + 2 * quad_all(yes);
  o[8] = quad_is_first() == (quad_lane == 0);
  o[9] = uint(quad_vote::vote_t(quad_ballot(yes)));
  o[10] = simd_ballot(true).all() && !simd_ballot(yes).all() && simd_ballot(yes).any();
  o[11] = __metal_get_thread_index_in_simdgroup(ushort()) == lane;
}

kernel void partial(device const float* in, device float* out, uint i [[thread_position_in_grid]]) {
  if (in[i] < 0) return;  // the lanes that are left combine what they have
  out[4 * i] = simd_sum(in[i]);
  out[4 * i + 1] = simd_min(in[i]);
  out[4 * i + 2] = simd_prefix_exclusive_sum(in[i]);
  const float first = simd_broadcast_first(in[i]);
  out[4 * i + 3] = simd_is_first() ? 1.0f : first;
}

// Lanes whose value is negative leave, or with inactive lanes only stand aside.
template <typename T>
void quad_results(device const T* in, device T* out, uint i) {
  const T x = in[i];
  device T* o = out + 6 * i;
  o[0] = quad_sum(x);
  o[1] = quad_product(x);
  o[2] = quad_min(x);
  o[3] = quad_max(x);
  o[4] = quad_prefix_inclusive_sum(x);
  o[5] = quad_broadcast_first(x);
}
kernel void quads_float(device const float* in, device float* out,
                        uint i [[thread_position_in_grid]]) {
  if (in[i] >= 0) quad_results(in, out, i);
}
kernel void quads_uint(device const uint* in, device uint* out,
                       uint i [[thread_position_in_grid]]) {
  if (in[i] < 0x80000000u) quad_results(in, out, i);
}
kernel void quads_aside(device const float* in, device float* out,
                        uint i [[thread_position_in_grid]]) {
  if (in[i] >= 0) quad_results(in, out, i);
  if (simd_any(false)) out[i] = 0;
}
"""
SOURCE = source()


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


def lane_values(name: str) -> torch.Tensor:
    """Small numbers whose sums and products float and half hold exactly, or wrap alike."""
    generator = torch.Generator().manual_seed(0)
    if name in ("float", "half"):
        return torch.tensor([1, 2, 0.5, -1])[torch.randint(4, (32,), generator=generator)]
    return torch.randint(1, 100, (32,), generator=generator)


@pytest.mark.parametrize("name", TYPES)
def test_shuffles(library: metalsim.ShaderLibrary, name: str):
    values = torch.randperm(32).to(TYPES[name])
    out = torch.zeros(32, len(SHUFFLES), dtype=TYPES[name])
    getattr(library, f"shuffles_{name}")(values, out, threads=32, group_size=32)
    for column, (call, sources) in enumerate(SHUFFLES.items()):
        assert torch.equal(out[:, column], values[torch.from_numpy(sources)]), call


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("seed", [0, 5])
def test_combinations(library: metalsim.ShaderLibrary, name: str, seed: int):
    values = lane_values(name).to(TYPES[name])
    out = torch.zeros(32, 2 * len(COMBINES), dtype=TYPES[name])
    with metalsim.schedule(seed=seed):
        getattr(library, f"combines_{name}")(values, out, threads=32, group_size=32)
    numbers = values.numpy()
    for index, combine in enumerate(COMBINES):
        function = (WHOLE | SCANS)[combine]
        with numpy.errstate(over="ignore"):
            simd = numpy.broadcast_to(function(numbers), 32).astype(numbers.dtype)
            quad = quads(function, numbers).astype(numbers.dtype)
        assert numpy.array_equal(out[:, 2 * index].numpy(), simd), f"simd_{combine}"
        assert numpy.array_equal(out[:, 2 * index + 1].numpy(), quad), f"quad_{combine}"


@pytest.mark.parametrize("name", [name for name in TYPES if name not in ("float", "half")])
def test_bit_combinations(library: metalsim.ShaderLibrary, name: str):
    values = lane_values(name).to(TYPES[name])
    out = torch.zeros(32, 2 * len(BITS), dtype=TYPES[name])
    getattr(library, f"bits_{name}")(values, out, threads=32, group_size=32)
    for index, (operation, function) in enumerate(BITS.items()):
        simd = numpy.broadcast_to(function.reduce(values.numpy()), 32)
        assert numpy.array_equal(out[:, 2 * index].numpy(), simd), f"simd_{operation}"
        quad = quads(function.reduce, values.numpy())
        assert numpy.array_equal(out[:, 2 * index + 1].numpy(), quad), f"quad_{operation}"


def test_vectors_through_collectives(library: metalsim.ShaderLibrary):
    x, h = torch.randint(-9, 9, (32, 4)).float(), torch.randn(32, 4).half()
    before, highest = x.clone(), h.amax(0)
    library.vectors(x, h, threads=32, group_size=32)
    assert torch.equal(x, before[torch.arange(32) ^ 1] + before.sum(0).flip(0))
    assert torch.equal(h[:, :3], highest[:3].expand(32, 3))


def test_swizzles_are_vectors_to_collectives(library: metalsim.ShaderLibrary):
    x, out = torch.randint(-4, 5, (32, 4)).float(), torch.zeros(32, 2, 8, 2)
    library.swizzles(x, out, threads=32, group_size=32)
    assert torch.equal(out[:, 0], out[:, 1])
    assert (out != 0).any(dim=(0, 1, 3)).all()


def test_votes(library: metalsim.ShaderLibrary):
    values = torch.randint(-3, 4, (32,), dtype=torch.int32)
    values[:4] = torch.tensor([1, 1, 1, 1])
    values[4:8] = -1
    out = torch.zeros(32, 12, dtype=torch.int32)
    library.votes(values, out, threads=32, group_size=32)
    yes = values.numpy() > 0
    mask = int((yes * (1 << LANE)).sum())
    expected = numpy.zeros((32, 12), dtype=numpy.int64)
    expected[:, 0] = mask if mask < 1 << 31 else mask - (1 << 32)
    expected[:, [1, 3, 8, 10, 11]] = 1
    expected[0, 5] = 1
    expected[:, 6] = -1
    expected[:, 7] = quads(lambda q: numpy.any(q) + 2 * numpy.all(q), yes)
    expected[:, 9] = quads(lambda q: (q * (1 << numpy.arange(4))).sum(), yes)
    assert out.tolist() == expected.tolist()


@pytest.mark.parametrize("threads", [32, 20])
def test_lanes_that_returned_take_no_part(library: metalsim.ShaderLibrary, threads: int):
    values = torch.arange(threads, dtype=torch.float32) + 1
    values[torch.arange(threads) % 3 == 0] = -1.0  # among them lane 0
    out = torch.zeros(threads, 4)
    library.partial(values, out, threads=threads, group_size=32)
    left = values > 0
    kept = values[left]
    first = torch.arange(len(kept)) == 0
    exclusive = torch.cumsum(kept, 0) - kept
    total, lowest = kept.sum().expand(len(kept)), kept.min().expand(len(kept))
    expected = torch.stack([total, lowest, exclusive, torch.where(first, 1.0, kept[0])], 1)
    assert torch.equal(out[left], expected)
    assert (out[~left] == 0).all()


@pytest.mark.parametrize("kernel", ["quads_float", "quads_uint", "quads_aside"])
def test_quadgroups_of_fewer_than_four_lanes(compiler: str, kernel: str):
    library = metalsim.compile_shader(SOURCE, inactive_lanes=kernel == "quads_aside")
    values = torch.arange(22, dtype=torch.float32) + 1  # the last quadgroup has two lanes
    values[[0, 5, 6, 11]] = -1.0
    out = torch.zeros(22, 6)
    if kernel == "quads_uint":
        given = values.numpy().astype(numpy.int32).view(numpy.uint32)
        integers = numpy.zeros((22, 6), numpy.uint32)
        library.quads_uint(given, integers, threads=22, group_size=32)
        out = torch.from_numpy(integers.astype(numpy.float32))
    else:
        getattr(library, kernel)(values, out, threads=22, group_size=32)
    for start in range(0, 22, 4):
        lanes = [lane for lane in range(start, min(start + 4, 22)) if values[lane] >= 0]
        left = values[lanes]
        expected = [left.sum(), left.prod(), left.min(), left.max()]
        assert (out[lanes][:, :4] == torch.stack(expected)).all(), start
        assert torch.equal(out[lanes][:, 4], left.cumsum(0)), start
        assert (out[lanes][:, 5] == left[0]).all(), start
