"""A barrier or collective that not all threads reach: always an error, never a hang."""

from __future__ import annotations

import re

import pytest
import torch

import metalsim

PRELUDE = "#include <metal_stdlib>\nusing namespace metal;\n"
BODIES = {
    "barrier_in_branch": """
  if (t < 16)
    threadgroup_barrier(mem_flags::mem_threadgroup);  // line 6
  out[t] = 1;""",
    "early_return_before_barrier": """
  if (t >= 40) return;
  threadgroup_barrier(mem_flags::mem_threadgroup);""",
    "two_barriers": """
  if (t < 32)
    threadgroup_barrier(mem_flags::mem_none);
  else
    threadgroup_barrier(mem_flags::mem_none);""",
    "collective_in_branch": """
  if (t % 2)
    out[t] = simd_sum(1.0f);""",
    "two_collectives": """
  out[t] = t % 32 < 10 ? simd_sum(1.0f) : simd_max(1.0f);""",
    "two_lines": """
  if (t < 3)
    out[t] = simd_sum(1.0f);
  else
    out[t] = simd_sum(2.0f);""",
    "barrier_against_collective": """
  if (t < 8) {
    simdgroup_barrier(mem_flags::mem_none);
  } else {
    out[t] = simd_shuffle_xor(out[t], ushort(1));
  }""",
    "loops_of_unequal_length": """
  for (uint i = 0; i < 1 + t / 32; ++i)
    threadgroup_barrier(mem_flags::mem_none);""",
    "lane_leaves_simdgroup_barrier": """
  if (t == 5) return;
  simdgroup_barrier(mem_flags::mem_none);""",
    "two_calls_of_one_line": """
  float s = 0; if (t < 16) s = simd_sum(1.0f); s += simd_sum(2.0f);
  out[t] = s;""",
    "two_barriers_of_one_line": """
  t < 32 ? threadgroup_barrier(mem_flags(0)) : threadgroup_barrier(mem_flags(0));""",
}
EXPECTED = {  # what the message must say: (count, "first", where)
    "barrier_in_branch": [(16, 0, "in threadgroup_barrier at line 6"),
                          (48, 16, "returned from the kernel")],
    "early_return_before_barrier": [(40, 0, "in threadgroup_barrier at line 6"),
                                    (24, 40, "returned from the kernel")],
    "two_barriers": [(32, 0, "in threadgroup_barrier at line 6"),
                     (32, 32, "in threadgroup_barrier at line 8")],
    "collective_in_branch": None,  # lanes that return leave the collective to the others
    "two_collectives": [(20, 0, "in simd_sum at line 5"), (44, 10, "in simd_max at line 5")],
    "two_lines": [(3, 0, "in simd_sum at line 6"), (29, 3, "in simd_sum at line 8"),
                  (32, 32, "returned from the kernel")],
    "barrier_against_collective": [(8, 0, "in simdgroup_barrier at line 6"),
                                   (24, 8, "in simd_shuffle_xor at line 8"),
                                   (32, 32, "returned from the kernel")],
    "loops_of_unequal_length": [(32, 0, "returned from the kernel"),
                                (32, 32, "in threadgroup_barrier at line 6")],
    "lane_leaves_simdgroup_barrier": [(31, 0, "in simdgroup_barrier at line 6"),
                                      (1, 5, "returned from the kernel"),
                                      (32, 32, "returned from the kernel")],
    "two_calls_of_one_line": [(16, 0, "in simd_sum at line 5"),
                              (16, 16, "in simd_sum at line 5 by another call"),
                              (32, 32, "returned from the kernel")],
    "two_barriers_of_one_line": [(32, 0, "in threadgroup_barrier at line 5"),
                                 (32, 32, "in threadgroup_barrier at line 5 by another call")],
}  # fmt: skip
HELPERS = (
    PRELUDE
    + """
inline float total(float value) {
  return simd_sum(value);
}
void meet() { threadgroup_barrier(mem_flags::mem_none); }
#define MEET threadgroup_barrier(mem_flags::mem_none)
#define KERNEL(name) kernel void name(device float* out, uint t [[thread_index_in_threadgroup]])

KERNEL(helper_twice) {
  float sum = 0;
  if (t % 32 < 16)
    sum = total(1.0f);
  sum += total(2.0f);
  out[t] = sum;
}
KERNEL(helper_on_both_sides) {
  if (t % 32 < 16)
    out[t] = total(1.0f);
  else
    out[t] = total(2.0f);
}
KERNEL(barrier_in_a_helper) {
  if (t < 32) meet();
  out[t] = 1;
  if (t >= 32) meet();
}
KERNEL(macro_twice_in_a_line) { if (t < 32) MEET; out[t] = 1; if (t >= 32) MEET; }
KERNEL(all_together) {
  float sum = 0;
  for (uint turn = 0; turn < 3; ++turn) {
    sum += total(t & 1 ? 1.0f : 2.0f);
    meet();
  }
  out[t] = sum + total(1.0f);
}
"""
)
KERNEL = (
    "kernel void {name}(device float* out, uint t [[thread_index_in_threadgroup]]) {{{body}\n}}"
)


def one_kernel(name: str) -> metalsim.Kernel:
    """The kernel alone, so that lines count from the same start: its body begins on line 5."""
    source = PRELUDE + "\n" + KERNEL.format(name=name, body=BODIES[name])
    return getattr(metalsim.compile_shader(source), name)


def standing(message: str) -> set[tuple[int, int, str]]:
    """(threads, first thread, where) as the message tells it, groups of one place joined."""
    found = re.findall(r"(\d+) threads? \(first: (\d+)\) (.*?)(?=;|\. All)", message)
    return {(int(count), int(first), where) for count, first, where in found}


def joined(places: list[tuple[int, int, str]]) -> set[tuple[int, int, str]]:
    totals = dict[str, tuple[int, int]]()
    for count, first, where in places:
        before = totals.get(where, (0, first))
        totals[where] = (before[0] + count, min(before[1], first))
    return {(count, first, where) for where, (count, first) in totals.items()}


@pytest.mark.parametrize("name", [name for name, places in EXPECTED.items() if places])
@pytest.mark.parametrize("seed", [0, 4])
def test_divergence_is_reported(compiler: str, name: str, seed: int):
    kernel = one_kernel(name)
    with (
        metalsim.schedule(seed=seed),
        pytest.raises(metalsim.DivergenceError, match=r"threadgroup \(0, 0, 0\)") as caught,
    ):
        kernel(torch.zeros(64), threads=64, group_size=64)
    if seed == 0 or name not in ("two_lines", "barrier_against_collective"):
        expected = joined(EXPECTED[name] or [])
        assert standing(str(caught.value)) == expected


def test_the_machine_works_after_an_error(compiler: str):
    bad, good = one_kernel("two_barriers"), one_kernel("collective_in_branch")
    for _ in range(3):
        with pytest.raises(metalsim.DivergenceError):
            bad(torch.zeros(64), threads=64, group_size=64)
        out = torch.zeros(64)
        good(out, threads=64, group_size=64)
        assert out.tolist() == [0, 16] * 32


def test_the_first_bad_threadgroup_is_named(compiler: str):
    source = (
        PRELUDE
        + """
kernel void f(device float* out, uint g [[threadgroup_position_in_grid]],
              uint t [[thread_index_in_threadgroup]]) {
  if (g != 6 || t > 3) threadgroup_barrier(mem_flags::mem_none);
}"""
    )
    kernel = metalsim.compile_shader(source).f
    with pytest.raises(metalsim.DivergenceError, match=r"threadgroup \(6, 0, 0\)"):
        kernel(torch.zeros(1), threads=640, group_size=64)


def test_matrices_need_a_full_simdgroup(compiler: str):
    source = (
        PRELUDE
        + """
kernel void f(device float* x) {
  simdgroup_float8x8 m(1.0f);
  simdgroup_multiply(m, m, m);
}"""
    )
    kernel = metalsim.compile_shader(source).f
    with pytest.raises(metalsim.SimulationError, match=r"simdgroup_multiply at line 6.* has 12"):
        kernel(torch.zeros(1), threads=12, group_size=32)


@pytest.mark.parametrize("name", ["helper_twice", "helper_on_both_sides", "barrier_in_a_helper"])
def test_checking_builds_tell_the_calls_of_a_helper_apart(clang: str, name: str):
    library = metalsim.compile_shader(HELPERS, check=True)
    with pytest.raises(metalsim.DivergenceError, match="by another call"):
        getattr(library, name)(torch.zeros(64), threads=64, group_size=64)


@pytest.mark.parametrize("check", [False, True])
def test_a_macro_twice_in_a_line_is_two_places(compiler: str, check: bool):
    library = metalsim.compile_shader(HELPERS, check=check)
    with pytest.raises(metalsim.DivergenceError, match="by another call"):
        library.macro_twice_in_a_line(torch.zeros(64), threads=64, group_size=64)


@pytest.mark.parametrize("check", [False, True])
def test_one_call_of_a_helper_is_one_place(compiler: str, check: bool):
    out = torch.zeros(64)
    metalsim.compile_shader(HELPERS, check=check).all_together(out, threads=64, group_size=64)
    assert out.tolist() == [3 * 48 + 32] * 64
