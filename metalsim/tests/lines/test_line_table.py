"""Addresses in kernel libraries as lines of the user's source, with each compiler."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import metalsim
from metalsim.lines import LineTable, Location
from metalsim.lines.reader import Reader, elf_sections

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/exe").exists(), reason="debug information is read out of ELF files only"
)

SOURCE = """
#include <metal_stdlib>
#include "parts/sum.h"
using namespace metal;

kernel void work(device const half4* in, device half4* out, device float* x,
                 uint i [[thread_position_in_grid]]) {
  threadgroup float tile[32];
  half4 v = in[i];
  out[i] = exp(v);
  tile[i] = sum_of_pair(x, i);
  threadgroup_barrier(mem_flags::mem_threadgroup);
  x[i] += simd_sum(tile[i ^ 1]);
}
"""
PART = """inline float sum_of_pair(device const float* x, uint i) {
  return x[i] +
         x[i + 1];
}
"""


@pytest.fixture
def library(compiler: str, tmp_path: Path) -> Path:
    """The compiled program, in a cache of its own."""
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "sum.h").write_text(PART)
    cache = tmp_path / "cache"
    metalsim.compile_shader(SOURCE, check=True, include_dirs=[tmp_path], cache_dir=cache)
    return next(cache.glob("kernels-*.so"))


def all_locations(library: Path) -> set[Location]:
    code = 4096 * 16
    found = map(LineTable.read(library).locate, range(code))
    return {location for location in found if location is not None}


def test_every_line_with_code_and_no_line_of_metalsim(library: Path):
    locations = all_locations(library)
    part = "parts/sum.h"
    assert {location.file for location in locations} == {"program_source", part}
    lines = {location.line for location in locations if location.file == "program_source"}
    assert {9, 10, 11, 12, 13} <= lines <= set(range(6, 15))
    assert {2, 3} <= {location.line for location in locations if location.file == part}


def test_addresses_outside_the_code_have_no_line(library: Path):
    table = LineTable.read(library)
    assert table.locate(1) is None
    assert table.locate(1 << 40) is None


def test_a_file_of_another_kind_has_no_lines(tmp_path: Path):
    other = tmp_path / "library.dylib"
    other.write_bytes(b"\xcf\xfa\xed\xfe" + bytes(100))
    assert elf_sections(other) == {}
    assert LineTable.read(other).locate(16) is None


@pytest.mark.parametrize(
    ("encoded", "value"), [(b"\x02", 2), (b"\x7f", -1), (b"\x80\x7f", -128), (b"\xff\x00", 127)]
)
def test_signed_leb128(encoded: bytes, value: int):
    """The examples of DWARF 4, figure 46, and one past a byte."""
    assert Reader(encoded).sleb() == value


def test_numbers_are_little_endian():
    reader = Reader(struct.pack("<Hbq", 0xBEEF, -3, -1))
    assert (reader.unsigned(2), reader.signed(1), reader.unsigned(8)) == (0xBEEF, -3, (1 << 64) - 1)
