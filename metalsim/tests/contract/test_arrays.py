"""numpy arrays as kernel arguments, with and without torch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
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
kernel void twice(device float* x, uint i [[thread_position_in_grid]]) { x[i] *= 2; }
kernel void gather(device float* out, device const ulong* addresses,
                   uint i [[thread_position_in_grid]]) {
  out[i] = ((const device float*)addresses[i])[0];
}
kernel void every_spelling(device float* a, device const float* b, const device float* c,
                           constant float& d, device float* const e, device float& f) {
  a[0] = b[0] + c[0] + d + e[0] + f;
}
"""


@pytest.fixture(scope="module")
def library() -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE, check=True)


@pytest.mark.parametrize("dtype", "bool int8 uint16 int32 uint64 float16 float32 complex64".split())
def test_every_type_arrives_as_it_is(library, dtype: str) -> None:
    values = np.arange(6).astype(dtype).reshape(2, 3)
    out = np.zeros(values.nbytes, dtype=np.uint8)
    library.copy_bytes(out, values)
    assert out.tobytes() == values.tobytes()


def test_structures_arrive_as_they_are(library) -> None:
    values = np.array([(1, 2.5)], dtype=[("count", np.int32), ("scale", np.float32)])
    out = np.zeros(values.nbytes, dtype=np.uint8)
    library.copy_bytes(out, values)
    assert out.tobytes() == values.tobytes()


@pytest.mark.parametrize(
    ("value", "casts", "expected"),
    [
        (np.uint8(7), None, b"\x07"),
        (np.float32(1.0), None, b"\x00\x00\x80\x3f"),
        (np.float64(1.0), None, b"\x00\x00\x80\x3f"),
        (np.array(1.0), None, b"\x00\x00\x80\x3f"),
        (np.uint8(7), "int16", b"\x07\x00"),
    ],
)
def test_scalars_keep_their_type(library, value: object, casts: object, expected: bytes) -> None:
    out = np.zeros(len(expected), dtype=np.uint8)
    library.copy_bytes(out, value, arg_casts=casts)
    assert out.tobytes() == expected
    with pytest.raises(metalsim.BoundsError):
        library.copy_bytes(out, value, arg_casts=casts, threads=len(expected) + 1)


def test_a_view_is_its_own_extent(library) -> None:
    x = np.ones((4, 6), dtype=np.float32)
    library.twice(x[1:3, 2:4], threads=8)
    assert x.ravel().tolist() == [1.0] * 8 + [2.0] * 8 + [1.0] * 8
    with pytest.raises(metalsim.BoundsError):
        library.twice(x[1:3, 2:4], threads=9)


def test_threads_default_to_the_elements_of_the_first_array(library) -> None:
    x = np.ones((3, 5), dtype=np.float32)
    library.twice(x)
    assert (x == 2).all()


def test_lists_of_arrays_are_addresses() -> None:
    out = np.zeros(2, dtype=np.float32)
    metalsim.compile_shader(SOURCE).gather(out, [np.full(1, 3, np.float32), torch.full((1,), 4.0)])
    assert out.tolist() == [3, 4]


def test_what_a_kernel_may_write_to(library) -> None:
    assert library.every_spelling.writable_buffers == (0, 4, 5)


def test_read_only_arrays_are_for_const_parameters(library) -> None:
    fixed = np.ones(4, dtype=np.float32)
    fixed.flags.writeable = False
    out = np.zeros(16, dtype=np.uint8)
    library.copy_bytes(out, fixed)
    assert out.tobytes() == fixed.tobytes()
    with pytest.raises(metalsim.ArgumentError, match="twice: argument 0 is a read-only array"):
        library.twice(fixed)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones(2), "array of float64, which Metal does not have"),
        (np.ones(2, dtype=np.complex128), "array of complex128"),
        (np.array(["a"]), "array of <U1"),
        (np.array([object()]), "array of object"),
        (np.ones(2, dtype=">f4"), "other byte order"),
        (np.ones(2, dtype=np.float32)[::-1], "negative stride"),
        (np.str_("a"), "array of <U1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arrays_that_metal_cannot_have(library, array: object, message: str) -> None:
    with pytest.raises(metalsim.ArgumentError, match=message):
        library.copy_bytes(np.zeros(1, dtype=np.uint8), array)


@pytest.mark.parametrize("absent", [["torch"], ["torch", "numpy"]])
def test_neither_library_is_needed(absent: list[str]) -> None:
    script = f"""
import sys
for name in {absent}:
    sys.modules[name] = None
import metalsim
library = metalsim.compile_shader({SOURCE!r}, check=True)
if "numpy" in {absent}:
    library.twice([1.0, 2.0], threads=2)
else:
    import numpy
    x = numpy.ones(3, dtype=numpy.float32)
    library.twice(x)
    assert x.tolist() == [2.0] * 3
"""
    subprocess.run([sys.executable, "-c", script], check=True)
