"""Directives and macros."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalsim.frontend.preprocessor import Preprocessed, Preprocessor


def preprocess(source: str, *include_dirs: Path) -> Preprocessed:
    return Preprocessor(include_dirs).run(source)


def texts(source: str, *include_dirs: Path) -> str:
    return " ".join(token.text for token in preprocess(source, *include_dirs).tokens)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("a /* b\nc */ d // e", "a d"),
        ("a\\\nb c", None),
        ("a \\\n b", "a b"),
        ("// comment \\\n still\nx", "x"),
        ("x >> 2 >>= y->z ... ::a", "x > > 2 > >= y -> z ... :: a"),
        ("1.5e-3f + 0x1p-2 - 1'000 .5h", "1.5e-3f + 0x1p-2 - 1'000 .5h"),
        ('"a \\" // b" \'c\'', '"a \\" // b" \'c\''),
        ("a\r\nb", "a b"),
    ],
)
def test_tokens(source: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(SyntaxError, match="continuation inside a word"):
            texts(source)
    else:
        assert texts(source) == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("#define A 1\nA B", "1 B"),
        ("#define F(x, y) y x\nF(1, (2, 3))", "( 2 , 3 ) 1"),
        ("#define F(x) x\nF", "F"),
        ("#define F(x) [x]\nF\n(\n1\n)", "[ 1 ]"),
        ('#define S(x) #x\nS(a  +b "q\\n")', '"a +b \\"q\\\\n\\""'),
        ("#define C(a, b) a##b\nC(x, 1) C(, y) C(x,) C(>, =)", "x1 y x >="),
        ("#define V(f, ...) f(__VA_ARGS__)\nV(g) V(g, 1, 2)", "g ( ) g ( 1 , 2 )"),
        ("#define V(f, ...) f(0, ##__VA_ARGS__)\nV(g) V(g, 1)", "g ( 0 ) g ( 0 , 1 )"),
        ("#define V(f, ...) f(0 __VA_OPT__(,) __VA_ARGS__)\nV(g) V(g, 1)", "g ( 0 ) g ( 0 , 1 )"),
        ("#define A B\n#define B A\nA B", "A B"),
        ("#define A f(A)\nA", "f ( A )"),
        ("#define f(x) x + f\nf(1)(2)", "1 + f ( 2 )"),
        ("#define X(x) Y(x)\n#define Y(x) x x\n#define N 3\nX(N)", "3 3"),
        ("#define S(x) #x\n#define T(x) S(x)\n#define N 3\nS(N) T(N)", '"N" "3"'),
        ("#define A 1\n#undef A\nA", "A"),
        ("__LINE__\n\n__LINE__ __FILE__", '1 3 "program_source"'),
        ("#define L __LINE__\n\nL", "3"),
        ("__COUNTER__ __COUNTER__", "0 1"),
        ("#define N 4\n#pragma unroll(N)\nx", '_Pragma ( "unroll(4)" ) x'),
        ('#define N 4\n_Pragma("unroll(N)") x', '_Pragma ( "unroll(4)" ) x'),
        ("#pragma METAL fp contract(off)\nx", '_Pragma ( "clang fp contract(off)" ) x'),
        ("#pragma METAL fp math_mode(safe)\nx", "x"),
        ("#include <metal_stdlib>\n#include <metal_simdgroup_matrix>\n#\nx", "x"),
    ],
)
def test_macros(source: str, expected: str) -> None:
    assert texts(source) == expected


@pytest.mark.parametrize(
    ("condition", "value"),
    [
        ("1", True),
        ("0", False),
        ("__METAL_VERSION__ >= 310", True),
        ("__METAL_VERSION__ >= 400", True),
        ("__METAL_VERSION__ > 400", False),
        ("defined(__METAL__) && !defined X", True),
        ("UNKNOWN", False),
        ("true", True),
        ("1 + 2 * 3 == 7", True),
        ("(1 + 2) * 3 == 7", False),
        ("8 >> 1 == 4 && 1 << 3 == 8", True),
        ("-7 / 2 == -3 && -7 % 2 == -1", True),
        ("1 ? 0 : 1", False),
        ("UNKNOWN && 1 / UNKNOWN", False),
        ("1 || 1 % 0 || 1 << -1", True),
        ("1 || (0 && 1 / 0)", True),
        ("1 ? 2 : 1 / 0", True),
        ("0 ? 1 / 0 : 2", True),
        ("0x10 == 16 && 010 == 8 && 1'0u == 10UL", True),
        ("'A' == 65", True),
        ("3 > 2 > 1", False),
        ("~0 == -1", True),
        ("__has_include(<metal_stdlib>)", True),
        ("__has_include(<MetalPerformancePrimitives/MetalPerformancePrimitives.h>)", True),
        ("__has_include(<metal_raytracing>)", False),
        ("__has_builtin(__builtin_x)", False),
    ],
)
def test_conditions(condition: str, value: bool) -> None:
    assert texts(f"#if {condition}\nyes\n#else\nno\n#endif") == ("yes" if value else "no")


def test_nested_conditionals() -> None:
    source = "#ifdef A\n#if 1/0\na\n#else\nb\n#endif\n#elif 1\nc\n#elif 1/0\nd\n#else\ne\n#endif\n"
    assert texts(source) == "c"
    assert texts("#define A\n" + source.replace("1/0", "0")) == "b"


@pytest.mark.parametrize(
    ("source", "place", "message"),
    [
        ("x\n#if 1\n", "2:2", "unterminated conditional"),
        ("#endif", "1:2", "#endif without #if"),
        ("#if 1\n#else\n#else\n#endif", "3:2", "#else after #else"),
        ("#if (1\n#endif", "1:2", r"expected '\)'"),
        ("#if 1 +\n#endif", "1:2", "expected a value"),
        ("#if 1 / 0\n#endif", "1:7", "'/' by 0"),
        ("#if 1 && 1 / 0\n#endif", "1:12", "'/' by 0"),
        ("#if (0 && 1) || 1 / 0\n#endif", "1:19", "'/' by 0"),
        ("#if 0 ? 1 : 1 % 0\n#endif", "1:15", "'%' by 0"),
        ("#define F(a) a\nF(1, 2)", "2:1", "takes 1 arguments, 2 given"),
        ("#define F(a) a\n F(1", "2:2", "unterminated argument list"),
        ("#define C(a, b) a##b\n C(x, +)", "2:2", "does not give one token"),
        ("#error one two", "1:2", "one two"),
        ("#frobnicate", "1:2", "unknown directive '#frobnicate'"),
        ('#include "gone.h"', "1:10", "'gone.h' file not found"),
        ("#include <metal_raytracing>", "1:10", "does not support <metal_raytracing>"),
        ("a /* b", "1:3", "unterminated /"),
        ('"abc', "1:1", "missing terminating"),
        ("a @ b", "1:3", "unexpected character '@'"),
        ("int x;\n// caf\u00e9", "2:7", r"U\+00E9, which is not ASCII"),
    ],
)
def test_errors(source: str, place: str, message: str) -> None:
    with pytest.raises(SyntaxError, match=message) as caught:
        preprocess(source)
    assert str(caught.value).startswith(f"program_source:{place}: error: ")


def test_includes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.h").write_text('#pragma once\n#include "sub/b.h"\nint a;\n')
    (tmp_path / "sub" / "b.h").write_text('#include "c.h"\n#include <a.h>\nint b;\n')
    (tmp_path / "sub" / "c.h").write_text("int c = __LINE__;\n")
    program = preprocess('#include "a.h"\n#include <a.h>\nint d;', tmp_path)
    assert [token.text for token in program.tokens if token.text in "abcd"] == ["c", "b", "a", "d"]
    assert [(token.source, token.line) for token in program.tokens if token.text == "b"] == [
        ("sub/b.h", 3)
    ]
    assert program.included


def test_an_error_in_an_included_file_names_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.h").write_text("x\n#if\n#endif\n")
    with pytest.raises(SyntaxError, match=r"^a\.h:2:2: error: "):
        preprocess('#include "a.h"', tmp_path)


def test_line_directive_moves_what_follows() -> None:
    program = preprocess('a\n#line 100 "kernel.metal"\nb\n\nc\n#line 7\nd')
    assert [(token.text, token.source, token.line) for token in program.tokens] == [
        ("a", "program_source", 1),
        ("b", "kernel.metal", 100),
        ("c", "kernel.metal", 102),
        ("d", "kernel.metal", 7),
    ]
    assert program.line_text("kernel.metal", 102) == "c"
    assert program.line_text("kernel.metal", 7) == "d"
    assert program.line_text("program_source", 1) == "a"


def test_body_tokens_stand_at_the_macro_and_arguments_at_their_own_place() -> None:
    tokens = preprocess("#define F(x) + x\n   F( a )").tokens
    assert [(token.text, token.line, token.column) for token in tokens] == [
        ("+", 2, 4),
        ("a", 2, 7),
    ]
