"""What Metal's headers refuse with a static_assert is refused here, at the line of the call."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import metalsim

Tensors = Callable[..., metalsim.ShaderLibrary]

MEMORY = "template <class T> using Memory = tensor<T, dextents<int, 2>, tensor_inline>;"
RUN = "op.run(A, B, C);"
LEFT = "auto x = op.get_left_input_cooperative_tensor<half, half, float>();"
RIGHT = "auto y = op.get_right_input_cooperative_tensor<half, half, float>();"
SUMS = "auto z = op.get_destination_cooperative_tensor<decltype(A), decltype(B), float>();"
SOURCE = (
    "matmul2d<matmul2d_descriptor({}), {}> before;\n"
    "auto s = before.get_destination_cooperative_tensor<decltype(A), decltype(B), {}>();\n"
)
CONVERT = "auto x = op.get_left_input_cooperative_tensor<half, half, float>(s);"
CONVERT_RIGHT = "auto x = op.get_right_input_cooperative_tensor<half, half, float>(s);"
LINE = "auto l = op.get_row_reduction_destination_cooperative_tensor<{}, {}, float>();"


def program(
    body: str,
    descriptor: str = "16, 32, 16",
    scope: str = "execution_simdgroup",
    elements: tuple[str, str, str] = ("half", "half", "float"),
) -> str:
    a, b, c = elements
    return f"""{MEMORY}
kernel void f(device {a}* a, device {b}* b, device {c}* c) {{
  Memory<{a}> A(a, dextents<int, 2>(16, 16));
  Memory<{b}> B(b, dextents<int, 2>(32, 16));
  Memory<{c}> C(c, dextents<int, 2>(32, 16));
  matmul2d<matmul2d_descriptor({descriptor}), {scope}> op;
{body}
}}
"""


ACCEPTED = {
    "run": program(RUN),
    "one row of 8": program(RUN, "8, 16, 16"),
    "one column": program(RUN, "16, 1, 16"),
    "k is any by one thread": program(RUN, "1, 2, 3", "execution_thread"),
    "k of 0 is dynamic": program(RUN, "16, 32, 0"),
    "int32_t of uint8_t": program(RUN, elements=("uint8_t", "uint8_t", "int32_t")),
    "all cooperative": program(f"{LEFT}\n{RIGHT}\n{SUMS}\nop.run(x, y, z);"),
    "one cooperative input of any K": program(f"{LEFT}\nop.run(x, B, C);", "16, 32, 128"),
    "a source": program(SOURCE.format("16, 16", "execution_simdgroup", "half") + CONVERT),
}
REFUSED = {
    "m and n": (program(RUN, "8, 8, 16"), "at least one of M and N must be a multiple of 16"),
    "m of 3": (program(RUN, "3, 16, 16"), "M and N must be 1, 2, 4 or a multiple of 8"),
    "n of 20": (program(RUN, "16, 20, 16"), "M and N must be 1, 2, 4 or a multiple of 8"),
    "k of 8": (program(RUN, "16, 32, 8"), "K must be dynamic or a multiple of 16"),
    "thread n": (program(RUN, "1, 17, 16", "execution_thread"), "1, 2, 4 or a multiple of 8"),
    "const left": (program(RUN, elements=("const half", "half", "float")), "const elements"),
    "constant right": (program(RUN, elements=("half", "constant half", "float")), "const elements"),
    "types": (program(RUN, elements=("float", "half", "half")), "does not multiply these element"),
    "char": (program(RUN, elements=("char", "char", "int32_t")), "does not multiply these"),
    "signs": (program(RUN, elements=("int8_t", "uint8_t", "int32_t")), "does not multiply these"),
    "rank": (
        program("tensor D(a, dextents<int, 1>(16));\nop.run(D, B, C);"),
        "an operand must have rank 2",
    ),
    "scope": (program("", scope="half"), "the scope must be"),
    "threads": (program("", scope="execution_threads<2>"), "the scope must be execution_thread"),
    "input of simdgroups": (
        program(LEFT, scope="execution_simdgroups<2>"),
        "require a single simdgroup",
    ),
    "input of a thread": (program(RIGHT, scope="execution_thread"), "require a single simdgroup"),
    "input of dynamic K": (program(LEFT, "16, 32"), "K cannot be dynamic"),
    "input of dynamic length": (program(LEFT, "16, 32, dynamic_length_v<int>"), "K cannot be dyn"),
    "both inputs of 48": (
        program(f"{LEFT}\n{RIGHT}\nop.run(x, y, C);", "16, 48, 16"),
        "M, N and K must be 16 or 32",
    ),
    "both inputs of 16": (
        program(f"{LEFT}\n{RIGHT}\nop.run(x, y, C);", "16, 16, 16"),
        "one of them 32",
    ),
    "places swapped": (
        program(f"{LEFT}\n{RIGHT}\nop.run(y, x, C);"),
        "the place for which it was made",
    ),
    "another shape": (
        program(
            SOURCE.format("16, 64, 16", "execution_simdgroup", "float") + "op.run(A, B, s);",
        ),
        "an operation of another shape",
    ),
    "another scope": (
        program(SOURCE.format("16, 32, 16", "execution_simdgroups<4>", "float") + "op.run(A,B,s);"),
        "made for another execution scope",
    ),
    "operands of another type": (
        program(
            "auto z = op.get_destination_cooperative_tensor<decltype(B), decltype(A), float>();\n"
            "op.run(A, B, z);",
            elements=("half", "bfloat", "float"),
        ),
        "input types must match",
    ),
    "elements instead of operands": (
        program("auto z = op.get_destination_cooperative_tensor<half, half, float>();"),
        "destinations are named by the types of their operands",
    ),
    "source element": (
        program(SOURCE.format("16, 16", "execution_simdgroup", "float") + CONVERT),
        "the source's element type must be that of the input",
    ),
    "source shape": (
        program(SOURCE.format("16, 32", "execution_simdgroup", "half") + CONVERT),
        "M x K of the next operation",
    ),
    "source shape on the right": (
        program(SOURCE.format("16, 16", "execution_simdgroup", "half") + CONVERT_RIGHT),
        "K x N of the next operation",
    ),
    "source transposed": (
        program(
            SOURCE.format("16, 16", "execution_simdgroup", "half") + CONVERT, "16, 32, 16, true"
        ),
        "cannot be transposed",
    ),
    "source scope": (
        program(SOURCE.format("16, 16", "execution_simdgroups<4>", "half") + CONVERT),
        "must belong to a single simdgroup",
    ),
    "source is an input": (
        program(LEFT.replace(" x ", " s ") + "\n" + CONVERT),
        "must be a destination of a matmul2d",
    ),
    "reduction of simdgroups": (
        program(
            f"{SUMS}\n{LINE.format('decltype(A)', 'decltype(B)')}\nreduce_rows(z, l);",
            scope="execution_simdgroups<2>",
        ),
        "require a single simdgroup",
    ),
    "reduction of the wrong kind": (
        program(f"{SUMS}\n{LINE.format('decltype(A)', 'decltype(B)')}\nreduce_columns(z, l);"),
        "reduce_rows takes a row reduction",
    ),
    "reduction of another operation": (
        program(
            f"{SUMS}\n"
            + SOURCE.format("16, 64", "execution_simdgroup", "float")
            + LINE.format("decltype(A)", "decltype(B)")
            + "\nreduce_rows(s, l);"
        ),
        "source and destination must be of one operation",
    ),
    "store of another type": (
        program(f"{SUMS}\nz.store(A);"),
        "the tensor's element type must be that of the cooperative tensor",
    ),
    "handle": (
        program("tensor<device half, dextents<int, 2>> D(a, dextents<int, 2>(16, 16));"),
        "a tensor_handle is bound by the host",
    ),
    "descriptor": (
        program("using D = tensor<device half, dextents<int, 2>, tensor_offset>;\nsizeof(D);"),
        "must be tensor_handle or tensor_inline",
    ),
    "parameter": (
        "kernel void f(tensor<device half, dextents<int, 2>> A [[buffer(0)]]) {}",
        "a kernel parameter cannot be a tensor",
    ),
}
OF_CXX = {  # the message is the C++ compiler's own
    "temporary": program("op.run(A.slice(0, 0), B, C);"),
    "wrong rank of a slice": program("auto D = A.slice<16>(0);"),
    "static_slice does not exist": program("auto D = A.static_slice<16, 16>(0, 0);"),
    "get_mask does not exist": program(f"{SUMS}\nbool x = z.get_mask(0);"),
    "execution_threadgroup does not exist": program("", scope="execution_threadgroup"),
}


def test_everything_accepted(tensor_library: Tensors) -> None:
    for name, source in ACCEPTED.items():
        try:
            tensor_library(source)
        except SyntaxError as error:
            pytest.fail(f"{name}: {error}")


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tensor_library: Tensors, name: str) -> None:
    source, message = REFUSED[name]
    with pytest.raises(SyntaxError, match=message) as caught:
        tensor_library(source)
    assert caught.value.filename == "program_source"


@pytest.mark.parametrize("name", OF_CXX)
def test_refused_by_the_compiler(tensor_library: Tensors, name: str) -> None:
    with pytest.raises(SyntaxError, match=r"program_source:\d+:\d+: error"):
        tensor_library(OF_CXX[name])


@pytest.mark.parametrize("name", ["m and n", "types", "input of dynamic K", "source shape"])
def test_refused_with_each_compiler(tensor_library: Tensors, name: str, compiler: str) -> None:
    test_refused(tensor_library, name)


def test_programs_without_the_headers_have_no_tensors() -> None:
    with pytest.raises(SyntaxError, match="tensor"):
        metalsim.compile_shader(
            "#include <metal_stdlib>\nusing namespace metal;\n"
            "kernel void f(device half* a) { auto t = tensor(a, 3); }"
        )
