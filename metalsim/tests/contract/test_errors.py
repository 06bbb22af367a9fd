"""Errors of the source, at the user's line and column; and errors that kernels report."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import metalsim


def compile_fails(source: str, **options: object) -> SyntaxError:
    with pytest.raises(SyntaxError) as caught:
        metalsim.compile_shader(source, **options)
    return caught.value


HEAD = "#include <metal_stdlib>\nusing namespace metal;\n"


@pytest.mark.parametrize(
    ("source", "line", "word"),
    [
        ("kernel void f(device int* x) {\n  x[0] = undeclared;\n}", 2, "undeclared"),
        (
            "kernel void f(constant int& a, device int* x) { x[0] = 1.0 * undeclared; }",
            1,
            "undeclared",
        ),
        (
            "#define SUM(x) (x + x)\nkernel void f(device int* x) {\n  x[0] = SUM(missing);\n}",
            3,
            "missing",
        ),
        (
            "#define BODY x[0] = undeclared\n\nkernel void f(device int* x) {\n    BODY;\n}",
            4,
            "BODY",
        ),
        ("kernel void f(device int* x) {\n  threadgroup Missing y[4];\n}", 2, "Missing"),
        ("kernel void f(device int* x,\n    device Missing* y) {}", 2, "Missing"),
    ],
)
def test_line_and_column(compiler: str, source: str, line: int, word: str) -> None:
    error = compile_fails(HEAD + source)
    text = source.split("\n")[line - 1]
    column = text.index(word) + 1
    assert (error.filename, error.lineno, error.offset) == ("program_source", line + 2, column)
    assert error.text == text
    assert str(error).startswith(f"program_source:{line + 2}:{column}: error: ")
    assert "METALSIM" not in str(error)


def test_all_errors_are_listed(compiler: str) -> None:
    source = HEAD + "kernel void f(device int* x) {\n  x[0] = first;\n\n  x[1] = second;\n}"
    lines = compile_fails(source).msg.split("\n")
    assert [line.partition(" error:")[0] for line in lines] == [
        "program_source:4:10:",
        "program_source:6:10:",
    ]
    assert "first" in lines[0]
    assert "second" in lines[1]


def test_line_directives_rename_the_source(compiler: str) -> None:
    source = (
        HEAD + '#line 1 "attention.metal"\nkernel void f(device int* x) {\n  x[0] = undeclared;\n}'
    )
    error = compile_fails(source)
    assert str(error).startswith("attention.metal:2:10: error: ")
    assert error.text == "  x[0] = undeclared;"


def test_an_included_file_is_named(compiler: str, tmp_path: Path) -> None:
    (tmp_path / "part.h").write_text("inline int g() {\n  return undeclared;\n}\n")
    error = compile_fails(HEAD + '#include "part.h"\n', include_dirs=[tmp_path])
    assert str(error).startswith("part.h:2:10: error: ")
    assert error.text == "  return undeclared;"


def test_an_error_inside_the_headers_is_placed_in_the_source(compiler: str) -> None:
    source = HEAD + "kernel void f(device int* x) {\n  simdgroup_matrix<int, 8, 8> m;\n}"
    error = compile_fails(source)
    assert error.filename == "program_source"
    assert error.lineno == 4


def test_a_wrong_instantiation_points_at_the_instantiation(compiler: str) -> None:
    source = (
        HEAD
        + "template <typename T> kernel void f(device T* x) { x[0] = T::missing; }\n"
        + 'template [[host_name("f_int")]] [[kernel]] decltype(f<Gone>) f<Gone>;\n'
    )
    error = compile_fails(source)
    assert (error.filename, error.lineno) == ("program_source", 4)


@pytest.mark.parametrize(
    "statement",
    ["limits[0] = 1;", "n = 3;", "bfloat b = 1.0f;", "half4 h; h.q = 1;"],
)
def test_what_the_compiler_refuses(compiler: str, statement: str) -> None:
    source = (
        HEAD + "constant int limits[2] = {1, 2};\nkernel void f(constant int& n, device int* x) {\n"
        f"  {statement}\n}}"
    )
    error = compile_fails(source)
    assert error.lineno == 5


def test_non_ascii_source_is_refused() -> None:
    error = compile_fails("// fine\nkernel void f(device int* x) {} // na\u00efve\n")
    assert (error.lineno, error.offset) == (2, 38)
    assert "ASCII" in str(error)


def test_source_must_be_text() -> None:
    with pytest.raises(TypeError, match="source must be a str, not bytes"):
        metalsim.compile_shader(b"")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="include_dirs must be a list"):
        metalsim.compile_shader("", include_dirs="here")


REPORTING = """
#include <metal_stdlib>
using namespace metal;
struct Message { char file[128]; char func[128]; char message[250]; uint line; };
struct Messages { atomic_uint count; Message msg[30]; };
static void put(device char* to, constant const char* from) {
  uint i = 0;
  for (; from[i] != 0; ++i) to[i] = from[i];
  to[i] = 0;
}
kernel void guarded(device int* x, device Messages* errors [[buffer(1)]],
                    uint i [[thread_position_in_grid]]) {
  if (x[i] < 0) {
    const uint at = atomic_fetch_add_explicit(&errors->count, 1u, memory_order_relaxed);
    if (at >= 30) return;
    put(errors->msg[at].file, __FILE__);
    put(errors->msg[at].func, "guarded");
    put(errors->msg[at].message, "negative" " value");
    errors->msg[at].line = __LINE__;
  }
}
"""


def test_error_buffer() -> None:
    library = metalsim.compile_shader(REPORTING)
    x = torch.arange(100, dtype=torch.int32)
    library.guarded(x, error_buf_idx=1)
    x[7] = -1
    with pytest.raises(metalsim.KernelReportedError) as caught:
        library.guarded(x, error_buf_idx=1)
    assert str(caught.value) == "program_source:19: guarded: negative value"
    with pytest.raises(RuntimeError, match=r"negative value \(and 99 more\)"):
        library.guarded(x - 100, error_buf_idx=1)
    with pytest.raises(RuntimeError, match="error_buf_idx must be from 0 to 30"):
        library.guarded(x, error_buf_idx=31)


WRONG = """
#include <metal_stdlib>
using namespace metal;
kernel void diverges(device int* x, uint i [[thread_position_in_grid]]) {
  if (i < 5) threadgroup_barrier(mem_flags::mem_threadgroup);
}
kernel void overflows(device int* x) {
  threadgroup float big[8193];
  big[0] = 1.0f;
  x[0] = int(big[0]);
}
kernel void strays(device int* x, uint i [[thread_position_in_grid]]) { x[i + 1] = 1; }
"""


@pytest.mark.parametrize(
    ("kernel", "error", "message"),
    [
        ("diverges", metalsim.DivergenceError, "5"),
        ("overflows", metalsim.ThreadgroupMemoryError, "32768"),
        ("strays", metalsim.BoundsError, "buffer"),
    ],
)
def test_what_goes_wrong_in_a_kernel(kernel: str, error: type, message: str) -> None:
    library = metalsim.compile_shader(WRONG, check=True)
    with pytest.raises(error, match=message):
        getattr(library, kernel)(torch.zeros(16, dtype=torch.int32), threads=16)


def test_a_view_ends_at_its_last_element() -> None:
    library = metalsim.compile_shader(WRONG, check=True)
    x = torch.zeros(16, dtype=torch.int32)
    library.strays(x[3:12], threads=8)
    with pytest.raises(metalsim.BoundsError):
        library.strays(x[3:12], threads=9)
