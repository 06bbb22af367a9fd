"""Declarations of a thread's own arrays: which are rewritten, and which must stay as they are."""

from __future__ import annotations

import pytest
import torch

import metalsim
from metalsim.frontend import translate

MACRO = "METALSIM_PRIVATE_ARRAY"


def body(statements: str) -> str:
    """The statements as a function's body, rewritten, on one line."""
    code = translate(f"void f() {{\n{statements}\n}}").code
    return " ".join(code.partition("f() {")[2].rpartition("}")[0].split())


@pytest.mark.parametrize(
    ("statement", "rewritten"),
    [
        ("float a[4];", f"{MACRO}(a,([4]),float);"),
        ("thread float a[2][N];", f"{MACRO}(a,([2][N]),float);"),
        ("metal::vec<T, 2> a[4] = {};", f"{MACRO}(a,([4]),metal::vec<T,2>){{}};"),
        ("int a[2] = {1, 2}, b[1]{3};", f"{MACRO}(a,([2]),int){{1,2}};{MACRO}(b,([1]),int){{3}};"),
        ("int i, a[2], j = 1;", f"inti;{MACRO}(a,([2]),int);intj=1;"),
    ],
)
def test_rewritten(statement: str, rewritten: str) -> None:
    assert body(statement).replace(" ", "") == rewritten.replace(" ", "")


@pytest.mark.parametrize(
    "statement",
    [
        "const float a[2] = {1.f, 2.f};",
        "constexpr int a[2] = {1, 2};",
        "int a[] = {1, 2};",
        "device float* a[2];",
        "a[1] = b[2];",
        "return a[1];",
        "if (x) { a[0] = 1; } else a[1] = 2;",
        "struct S { float a[2]; }; S s;",
        "typedef float A[2];",
        "x = y * a[2];",
    ],
)
def test_left_alone(statement: str) -> None:
    assert MACRO not in body(statement)


def test_members_and_constant_functions_keep_their_arrays() -> None:
    code = translate("struct S { int a[2]; };\nconstexpr int f() { int a[2] = {}; return a[0]; }")
    assert MACRO not in code.code


SOURCE = """
#include <metal_stdlib>
using namespace metal;

constant int primes[] = {2, 3, 5};
constexpr int third() {
  int all[3] = {1, 2, 3};
  return all[2];
}
template <class T, int N>
T sum(thread T (&values)[N]) {
  T total = T(0);
  for (thread T& value : values) total += value;
  return total;
}
kernel void f(device float* out, uint i [[thread_position_in_grid]]) {
  struct Local {
    float pair[2];
  };
  constexpr int count = third();
  float single[1] = {0.5f}, values[count] = {1, 2};
  Local locals[2];
  locals[1].pair[0] = single[0];
  if (i > 0) values[2] = sizeof(values) / sizeof(values[0]);
  out[i] = sum(values) + locals[1].pair[0] + primes[1];
}
"""


@pytest.mark.parametrize("check", [False, True])
def test_arrays_are_arrays_still(check: bool, compiler: str) -> None:
    out = torch.zeros(2)
    metalsim.compile_shader(SOURCE, check=check).f(out, threads=2)
    assert out.tolist() == [6.5, 9.5]
