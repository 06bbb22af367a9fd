"""What Python arguments become in a kernel's buffers, byte by byte, as torch has it."""

from __future__ import annotations

import struct

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void copy_bytes(device uchar* out, const device uchar* in,
                       uint i [[thread_position_in_grid]]) {
  out[i] = in[i];
}
kernel void gather(device float* out, const device ulong* addresses,
                   uint i [[thread_position_in_grid]]) {
  out[i] = ((const device float*)addresses[i])[0];
}
kernel void increase(device float* x, constant float& by, uint i [[thread_position_in_grid]]) {
  x[i] += by;
}
struct Sizes { uint n; };
kernel void three(device float* out, device float& factor [[buffer(2)]],
                  constant Sizes& sizes [[buffer(1)]]) {
  out[0] = factor + sizes.n;
}
constant bool biased [[function_constant(0)]];
kernel void optional(device float* out, constant float& bias [[function_constant(biased)]]) {
  out[0] = biased ? bias : 1.0f;
}
"""


@pytest.fixture(scope="module")
def library() -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, function_constants={"biased": False})


def seen_by_kernel(
    library: metalsim.ShaderLibrary, value: object, size: int, **options: object
) -> bytes:
    out = torch.zeros(size, dtype=torch.uint8)
    library.copy_bytes(out, value, **options)
    return bytes(out.tolist())


@pytest.mark.parametrize(
    ("value", "casts", "expected"),
    [
        (-3, None, struct.pack("<q", -3)),
        (True, None, struct.pack("<q", 1)),
        (1.5, None, struct.pack("<f", 1.5)),
        (1e300, None, struct.pack("<f", float("inf"))),
        ([1, -2], None, struct.pack("<2q", 1, -2)),
        ((1.5, 2), None, struct.pack("<2f", 1.5, 2.0)),
        ([True, 2], None, struct.pack("<2q", 1, 2)),
        (0.1, "fp16", struct.pack("<e", 0.1)),
        (1e6, "fp16", struct.pack("<e", float("inf"))),
        (3, "fp16", struct.pack("<e", 3.0)),
        (1.0, "bf16", b"\x80\x3f"),
        (-3, "int32", struct.pack("<i", -3)),
        ([1, -1], "int32", struct.pack("<2i", 1, -1)),
        (-3.9, "int32", struct.pack("<i", -3)),
        (-3, "int16", struct.pack("<h", -3)),
        (-3, "int8", struct.pack("<b", -3)),
        (200, "uint8", b"\xc8"),
        (300, "uint8", b"\x2c"),
        (7, {1: "int32"}, struct.pack("<i", 7)),
        (7, {0: "int32"}, struct.pack("<q", 7)),
        (7, "", struct.pack("<q", 7)),
    ],
)
def test_numbers(library, value: object, casts: object, expected: bytes) -> None:
    assert seen_by_kernel(library, value, len(expected), arg_casts=casts) == expected


@pytest.mark.parametrize("bits", [0x3F808000, 0x3F818000, 0x3F808001, 0xC0490FDB, 0x7F7FFFFF, 1, 0])
def test_bf16_rounds_as_torch_does(library, bits: int) -> None:
    value = struct.unpack("<f", struct.pack("<I", bits))[0]
    expected = torch.tensor([value]).bfloat16().view(torch.uint8).tolist()
    assert list(seen_by_kernel(library, value, 2, arg_casts="bf16")) == expected


def test_a_reference_must_be_bound(library) -> None:
    out = torch.zeros(1)
    with pytest.raises(metalsim.ArgumentError, match="increase: no argument for buffer 1, which"):
        library.increase(out)
    with pytest.raises(metalsim.ArgumentError, match="three: no argument for buffer 1, which"):
        library.three(out, threads=1)
    with pytest.raises(metalsim.ArgumentError, match="three: no argument for buffer 2, which"):
        library.three(out, 1, threads=1)
    library.optional(out, threads=1)
    assert out.item() == 1


def test_a_view_begins_at_its_first_element(library) -> None:
    x = torch.arange(12, dtype=torch.float32).view(3, 4)
    view = x[1:, 2:]
    library.increase(view, 100.0, threads=2)
    expected = torch.arange(12, dtype=torch.float32).view(3, 4)
    expected[1, 2:] += 100
    assert torch.equal(x, expected)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool]
)
def test_every_dtype_passes_as_bytes(library, dtype: torch.dtype) -> None:
    x = torch.arange(6).to(dtype)
    expected = bytes(x.view(torch.uint8).tolist())
    assert seen_by_kernel(library, x, len(expected)) == expected


def test_tensors_without_dimensions(library) -> None:
    assert seen_by_kernel(library, torch.tensor(2.5), 4) == struct.pack("<f", 2.5)
    assert seen_by_kernel(library, torch.tensor(2.5, dtype=torch.float64), 4) == struct.pack(
        "<f", 2.5
    )
    total = torch.tensor(1.0)
    library.increase(total, 2.0)
    assert total.item() == 3.0


def test_a_list_of_tensors_is_their_addresses(library) -> None:
    out = torch.zeros(3)
    rows = torch.arange(12, dtype=torch.float32).view(3, 4)
    library.gather(out, [rows[2], rows[0, 1:], rows[1]])
    assert out.tolist() == [8.0, 1.0, 4.0]


@pytest.mark.parametrize(
    "value",
    [
        None,
        "text",
        b"bytes",
        pytest.param(object(), id="object"),
        1j,
        [],
        (),
        [None],
        [1, 2.5],
        [1, "a"],
        ["a"],
        {"a": 1},
        1 << 63,
    ],
    ids=repr,
)
def test_refused_values(library, value: object) -> None:
    out = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="copy_bytes: argument 1") as caught:
        library.copy_bytes(out, value)
    assert isinstance(caught.value, TypeError)


def test_refused_tensors(library) -> None:
    out = torch.zeros(1, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match=r"argument 1 is a tensor on meta.*\.cpu\(\)"):
        library.copy_bytes(out, torch.zeros(1, device="meta"))
    with pytest.raises(metalsim.ArgumentError, match="argument 1 is torch.float64, which Metal"):
        library.copy_bytes(out, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(metalsim.ArgumentError, match="must hold tensors alone"):
        library.copy_bytes(out, [out, 1])


@pytest.mark.parametrize(
    ("casts", "message"),
    [
        ("float64", "Unsupported cast instruction 'float64'"),
        ({1: "uint32"}, "Unsupported cast instruction 'uint32'"),
        (["fp16"], "arg_casts must be a str or a dict"),
        ({"a": "fp16"}, "arg_casts maps an argument's index"),
        ({1: 16}, "arg_casts maps an argument's index"),
    ],
)
def test_refused_casts(library, casts: object, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        library.copy_bytes(torch.zeros(1, dtype=torch.uint8), 1, arg_casts=casts)


def test_more_arguments_than_slots(library) -> None:
    with pytest.raises(RuntimeError, match="31 buffer slots"):
        library.copy_bytes(*[torch.zeros(1)] * 32)
