"""Overloads and specialisations that differ in address spaces alone, as MLX's headers have them."""

from __future__ import annotations

import numpy as np
import pytest

import metalsim
from metalsim.frontend.address_space_twins import erase_twins
from metalsim.frontend.tokens import spell, tokenize


@pytest.mark.parametrize(
    "source",
    [
        "int f(FIRST int* x) { return *x; } int f(OTHER int* x) { return *x; }",
        "struct S { S() FIRST {} S() OTHER {} int f() { return 1; } };",
        "template <class T> struct E<FIRST T*> {}; template <class T> struct E<OTHER T*> {};",
        "namespace n { void f(FIRST int* x) {} } namespace n { void f(OTHER int* x) {} }",
        "struct S { S(int x = {}) FIRST : a{x}, b(1) {} S(int x = {}) OTHER : a{x}, b(1) {} };",
    ],
)
def test_twins_are_erased(source: str) -> None:
    written = source.replace("FIRST", "thread").replace("OTHER", "device")
    words = [token.text for token in erase_twins(tokenize(written))]
    assert words.count("thread") == 1
    assert "device" not in words
    assert words.count("{") == words.count("}")


@pytest.mark.parametrize(
    "source",
    [
        "int f(device int* x) { return *x; } int f(constant int* x) { return *x + 1; }",
        "struct A { A() thread {} }; struct B { B() device {} };",
        "namespace n { void f(device int* x) {} } namespace m { void f(thread int* x) {} }",
        "void f(device int* x) {} void f(device int* x) {}",
        "constant int a[2] = {1, 2}; constant int b[2] = {1, 2};",
        "struct S { int x; } s; void f(device int* x);",
    ],
)
def test_others_stay(source: str) -> None:
    tokens = tokenize(source)
    assert spell(erase_twins(tokens)) == spell(tokens)


def test_a_class_for_all_address_spaces_runs() -> None:
    library = metalsim.compile_shader(
        """#include <metal_stdlib>
        using namespace metal;
        template <typename T> struct Pair {
          T a, b;
          constexpr Pair(T a, T b) thread : a(a), b(b) {};
          constexpr Pair() thread : a(0), b(0) {};
          constexpr Pair() threadgroup : a(0), b(0) {};
          template <typename U, typename = typename enable_if<is_integral_v<U>>::type>
          constexpr Pair(U x) thread : a(static_cast<T>(x)), b(static_cast<T>(0)) {}
          template <typename U, typename = typename enable_if<is_integral_v<U>>::type>
          constexpr Pair(U x) constant : a(static_cast<T>(x)), b(static_cast<T>(0)) {}
          constexpr operator vec<T, 2>() const thread { return vec<T, 2>(a, b); }
          constexpr operator vec<T, 2>() const device { return vec<T, 2>(a, b); }
        };
        template <typename T> struct Element;
        template <typename T> struct Element<device T*> { using type = T; };
        template <typename T> struct Element<thread T*> { using type = T; };
        kernel void sum(device float* x, uint i [[thread_position_in_grid]]) {
          typename Element<device float*>::type two = vec<float, 2>(Pair<float>(2)).x;
          x[i] += vec<float, 2>(Pair<float>(x[i], 1)).y + two;
        }"""
    )
    x = np.arange(4, dtype=np.float32)
    library.sum(x)
    assert list(x) == [3, 4, 5, 6]
