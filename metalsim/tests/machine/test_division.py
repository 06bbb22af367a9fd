"""Integer division by zero: Metal gives some value, and the launch goes on."""

from __future__ import annotations

import signal

import numpy as np
import pytest

import metalsim

TYPES = {
    "char": np.int8,
    "uchar": np.uint8,
    "short": np.int16,
    "ushort": np.uint16,
    "int": np.int32,
    "uint": np.uint32,
    "long": np.int64,
    "ulong": np.uint64,
}
SOURCE = """
#include <metal_stdlib>
using namespace metal;
template <class T>
kernel void divide(device const T* x, device const T* y, device T* quotients, device T* remainders,
                   uint i [[thread_position_in_grid]]) {
  quotients[i] = x[i] / y[i];
  remainders[i] = x[i] % y[i];
}
""" + "".join(
    f'template [[host_name("divide_{name}")]] [[kernel]] decltype(divide<{name}>) divide<{name}>;\n'
    for name in TYPES
)


@pytest.mark.parametrize("check", [False, True])
@pytest.mark.parametrize("name", TYPES)
def test_division_by_zero_gives_a_value(name: str, check: bool, compiler: str) -> None:
    """And what is divided by other numbers beside it is right."""
    before = signal.getsignal(signal.SIGFPE)
    x = np.arange(60, 124).astype(TYPES[name])
    y = (np.arange(64) % 4).astype(TYPES[name])
    quotients, remainders = np.zeros_like(x), np.zeros_like(x)
    kernel = getattr(metalsim.compile_shader(SOURCE, check=check), f"divide_{name}")
    kernel(x, y, quotients, remainders, threads=64, group_size=32)
    some = y != 0
    np.testing.assert_array_equal(quotients[some], x[some] // y[some])
    np.testing.assert_array_equal((quotients * y + remainders)[some], x[some])
    assert signal.getsignal(signal.SIGFPE) == before


def test_the_smallest_number_by_minus_one(compiler: str) -> None:
    x, y = np.array([-(2**31), 7], np.int32), np.array([-1, -1], np.int32)
    quotients, remainders = np.zeros_like(x), np.zeros_like(x)
    metalsim.compile_shader(SOURCE).divide_int(x, y, quotients, remainders, threads=2)
    assert (quotients[1], remainders[1]) == (-7, 0)
