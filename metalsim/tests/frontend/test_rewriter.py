"""Kernels, threadgroup variables, function constants and words, as C++."""

from __future__ import annotations

import re

import pytest

from metalsim.frontend import Translation, translate


def body(source: str) -> str:
    """The translated program on one line, without the first include and the entries."""
    code = translate(source).code
    lines = [line for line in code.splitlines()[1:] if not line.startswith("#line")]
    return " ".join(" ".join(lines).partition("METALSIM_ENTRY")[0].split())


def entries(translation: Translation) -> list[str]:
    lines = translation.code.splitlines()
    return [line.strip() for line in lines if line.strip().startswith("METALSIM_ENTRY(")]


def test_a_kernel_and_its_arguments() -> None:
    program = translate(
        "kernel void f(device float* a, constant int& b [[buffer(0)]], const device half* c,\n"
        "  uint2 t [[thread_position_in_grid]], ushort s [[simdgroup_index_in_threadgroup]]) {}"
    )
    assert entries(program) == [
        (
            "METALSIM_ENTRY(0, (METALSIM_BUFFER(1), METALSIM_CONSTANT_BUFFER(0), "
            "METALSIM_BUFFER(2), METALSIM_BUILTIN(thread_position_in_grid), "
            "METALSIM_BUILTIN(simdgroup_index_in_threadgroup)), f)"
        )
    ]
    assert "METALSIM_KERNEL void f(" in " ".join(program.code.split()).replace("f (", "f(")


@pytest.mark.parametrize(
    "head",
    [
        "kernel void",
        "[[kernel]] void",
        "static kernel void",
        '[[host_name("f")]] kernel void',
        "[[kernel, max_total_threads_per_threadgroup(64)]] void",
        "[[max_total_threads_per_threadgroup(2 * 32)]] kernel void",
    ],
)
def test_spellings_of_a_kernel(head: str) -> None:
    program = translate(f"{head} f(device int* x) {{ }}\nkernel void g() {{}}")
    assert [kernel.name for kernel in program.kernels] == ["f", "g"]
    assert program.kernels[0].max_threads == (64 if "max_total" in head else 1024)
    assert entries(program)[1] == "METALSIM_ENTRY(1, (), g)"
    assert "[[" not in program.code


@pytest.mark.parametrize(
    ("instantiation", "limit"),
    [
        ("f<float, 2, 4>", 256),
        ("f<half, 1>", 96),
        ("f<vec<half, 2>, (3 - 1), 2>", 128),
        ("f<float, 64, 1>", 1024),
        ("f<float, WIDTH, 1>", 1024),
    ],
)
def test_a_limit_of_template_parameters(instantiation: str, limit: int) -> None:
    program = translate(
        "constant int WIDTH = 2;\n"
        "template <typename T, int ROWS, int COLUMNS = 3>\n"
        "[[max_total_threads_per_threadgroup(ROWS * COLUMNS * 32)]] kernel void f(device T* x) {}\n"
        f"template [[kernel]] decltype({instantiation}) {instantiation};"
    )
    assert program.kernels[0].max_threads == limit


@pytest.mark.parametrize(
    ("instantiation", "name", "expression"),
    [
        ('template [[host_name("x")]] [[kernel]] decltype(f<int, 4>) f<int, 4>;', "x", "f<int, 4>"),
        (
            'template [[host_name("x" "_" "y")]] kernel void f<int, 4>(device int*);',
            "x_y",
            "f<int, 4>",
        ),
        (
            "template [[kernel]] void f<vec<int, 2>, 4>(device vec<int, 2>*);",
            None,
            "f<vec<int, 2>, 4>",
        ),
        ('template [[host_name("x")]] [[kernel]] t f<int, (2 > 1)>;', "x", "f<int, (2 > 1)>"),
    ],
)
def test_instantiations(instantiation: str, name: str | None, expression: str) -> None:
    definition = "template <typename T, int N> [[kernel]] void f(device T* x) { }\n"
    program = translate(definition + instantiation)
    assert [kernel.name for kernel in program.kernels] == [name or expression]
    assert entries(program) == [f"METALSIM_ENTRY(0, (METALSIM_BUFFER(0)), {expression})"]
    assert "host_name" not in program.code


def test_namespaces_surround_the_entry() -> None:
    program = translate(
        "namespace a { namespace b::c { kernel void f(device int* x) {} } }\n"
        "namespace a { template <class T> kernel void g(device T* x) {}\n"
        'template [[host_name("g")]] [[kernel]] decltype(g<int>) g<int>; }'
    )
    assert [kernel.scope for kernel in program.kernels] == [("a", "b", "c"), ("a",)]
    assert "namespace a { namespace b { namespace c {" in program.code


@pytest.mark.parametrize(
    ("declaration", "expected"),
    [
        ("threadgroup float a[4];", "VARIABLE ( 0 , a , float [ 4 ] )"),
        (
            "threadgroup half a[32][LD], b, c[2];",
            "VARIABLE ( 0 , a , half [ 32 ] [ LD ] ) ; VARIABLE ( 1 , b , half )",
        ),
        (
            "threadgroup half b, c[2];",
            "VARIABLE ( 0 , b , half ) ; VARIABLE ( 1 , c , half [ 2 ] )",
        ),
        (
            "threadgroup half a, b, c[2];",
            "VARIABLE ( 1 , b , half ) ; VARIABLE ( 2 , c , half [ 2 ] )",
        ),
        ("threadgroup unsigned int n;", "VARIABLE ( 0 , n , unsigned int )"),
        ("threadgroup struct Pair n[2];", "VARIABLE ( 0 , n , struct Pair [ 2 ] )"),
        ("threadgroup metal::atomic_uint n[2];", "VARIABLE ( 0 , n , metal :: atomic_uint [ 2 ] )"),
        (
            "threadgroup vec<T, (N > 2 ? 4 : 2)> v[N < 3 ? 1 : 2];",
            "VARIABLE ( 0 , v , vec < T , ( N > 2 ? 4 : 2 ) > [ N < 3 ? 1 : 2 ] )",
        ),
        ("threadgroup typename X<T>::Y v;", "VARIABLE ( 0 , v , typename X < T > :: Y )"),
        ("alignas(16) threadgroup volatile int v;", "VARIABLE ( 0 , v , volatile int )"),
        ("float threadgroup v[2];", "VARIABLE ( 0 , v , float [ 2 ] )"),
        (
            "threadgroup float u, v[2] = {0};",
            "v , float [ 2 ] ) ; const float metalsim_initializer_of_v [ 2 ] = { 0 } ;",
        ),
        ("for (;;) { threadgroup int v; }", "for ( ; ; ) { VARIABLE ( 0 , v , int )"),
        ("threadgroup float* p = a;", "SPACE float * p = a"),
        ("threadgroup float (*p)[4] = a;", "SPACE float ( * p ) [ 4 ] = a"),
        ("const threadgroup T& r = *p;", "const SPACE T & r = * p"),
        ("auto p = (threadgroup const half4*)(q);", "auto p = ( SPACE const half4 * ) ( q )"),
        (
            "f(reinterpret_cast<threadgroup uint*>(q));",
            "f ( reinterpret_cast < SPACE uint * > ( q ) )",
        ),
    ],
)
def test_threadgroup_variables(declaration: str, expected: str) -> None:
    code = translate(f"template <class T> kernel void f(device T* x) {{ {declaration} }}").code
    words = re.sub(r"METALSIM_THREADGROUP_VARIABLE \( \(&::f<T>\) ?,", "VARIABLE(", code)
    for mark in "()[]<>,;*&?:":
        words = words.replace(mark, f" {mark} ")
    words = " ".join(words.replace("METALSIM_THREADGROUP", "SPACE").split()).replace(": :", "::")
    assert expected in words


def test_threadgroup_variables_are_numbered_within_each_kernel() -> None:
    source = "kernel void {}(device int* x) {{ threadgroup int a, b; {{ threadgroup int c; }} }}\n"
    code = "".join(translate(source.format("f") + source.format("g")).code.split())
    variables = re.findall(r"METALSIM_THREADGROUP_VARIABLE\(\(&::(.)\),(\d)", code)
    assert variables == [(kernel, at) for kernel in "fg" for at in "012"]


@pytest.mark.parametrize(
    ("parameters", "arguments"),
    [
        ("class T, int N = 4", "<T, N>"),
        ("typename T, typename... Rest", "<T, Rest...>"),
        ("int N, typename = enable_if_t<(N > 2), int>, int M = 3", "<N>"),
        ("typename T, unsigned int = 3", "<T>"),
        ("typename T, typename T::type = 0", "<T>"),
        ("template <class> class Op", "<Op>"),
    ],
)
def test_a_template_names_its_own_instantiation(parameters: str, arguments: str) -> None:
    source = (
        f"namespace a::b {{ template <{parameters}> kernel void f() {{ threadgroup int v; }} }}"
    )
    assert f"METALSIM_THREADGROUP_VARIABLE ( (&::a::b::f{arguments}) ," in translate(source).code


def test_a_template_with_a_parameter_that_has_no_name() -> None:
    source = "template <class> kernel void f() { threadgroup int v; }"
    assert "METALSIM_THREADGROUP_VARIABLE ( (nullptr) ," in translate(source).code


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("constant int N = 4;", "METALSIM_CONSTANT const int N = 4;"),
        ("constant constexpr int N = 4;", "METALSIM_CONSTANT constexpr int N = 4;"),
        ("constexpr constant int N = 4;", "constexpr METALSIM_CONSTANT int N = 4;"),
        ("constant float t[2] = {1, 2};", "METALSIM_CONSTANT const float t[2] = {1, 2};"),
        (
            "void f(volatile coherent(system) device int* x);",
            "void f(volatile METALSIM_DEVICE int* x);",
        ),
        ("void f(coherent device int* coherent);", "void f( METALSIM_DEVICE int* coherent);"),
        ("struct S { constant int* p; };", "struct S { METALSIM_CONSTANT const int* p; };"),
        ("int f(constant const int& x);", "int f( METALSIM_CONSTANT const int& x);"),
        ("int f(const constant int& x);", "int f(const METALSIM_CONSTANT int& x);"),
        ("struct S { void f() const thread; };", "struct S { void f() const METALSIM_THREAD ; };"),
        (
            "void f() { g(1.0h, 2.5bf, .5, 1e3, 0x1p3, 1.f, 3, 0xfe, 7u); }",
            "void f() { g(half(1.0f), bfloat(2.5f), .5f, 1e3f, 0x1p3f, 1.f, 3, 0xfe, 7u); }",
        ),
        (
            "struct [[maybe_unused]] S { int a [[id(0)]]; };",
            "struct [[maybe_unused]] S { int a ; };",
        ),
        ("struct S { S() = delete; };", "struct S { S() = delete; };"),
        ("void f() { a[b[0]] = x >> 2; }", "void f() { a[b[0]] = x >> 2; }"),
        (
            "void f() { auto g = [](int x) { return x; }; }",
            "void f() { auto g = [](int x) { return x; }; }",
        ),
        (
            "static_assert((A<int>{1.0h} * A<int>{3}).b == 5);\nkernel void k() {}",
            "static_assert((A<int>{half(1.0f)} * A<int>{3}).b == 5); METALSIM_KERNEL void k() {}",
        ),
        (
            "S::S() : a{1}, b{2} { c = 3; } kernel void k() {}",
            "S::S() : a{1}, b{2} { c = 3; } METALSIM_KERNEL void k() {}",
        ),
        (
            "constant S s[2] = {{1, 2}, {3}}, t{4}; kernel void k() {}",
            "METALSIM_CONSTANT const S s[2] = {{1, 2}, {3}}, t{4}; METALSIM_KERNEL void k() {}",
        ),
        (
            "struct S { int a; }; kernel void k() {}",
            "struct S { int a; }; METALSIM_KERNEL void k() {}",
        ),
        (
            "enum class E : int { a, b }; kernel void k() {}",
            "enum class E : int { a, b }; METALSIM_KERNEL void k() {}",
        ),
        ("S::S() : a{1}, b(2) { c = 3; }", "S::S() : a{1}, b(2) { c = 3; }"),
    ],
)
def test_words(source: str, expected: str) -> None:
    def squeeze(text: str) -> str:
        return "".join(text.split())

    assert squeeze(body(source)) == squeeze(expected)


def test_function_constants() -> None:
    source = (
        "constant bool a [[function_constant(0)]];\n"
        "static constant constexpr const float2 b [[function_constant(1)]];\n"
        "constant int c [[function_constant(2)]];\n"
        "constant int d = is_function_constant_defined(c) ? c : 7;\n"
    )
    code = translate(source, function_constants={"a": True, 1: (1, 0.5)}).code
    assert "constexpr bool a = static_cast<bool>(true) ;" in " ".join(code.split())
    assert "constexpr float2 b = float2(1, 0.5f) ;" in " ".join(code.split())
    assert "d = false" in " ".join(code.split())
    with pytest.raises(SyntaxError, match=r"^program_source:1:15: error: .*'a' has no value"):
        translate(source, function_constants={"b": (1, 2)})
    with pytest.raises(
        ValueError, match="function_constants has 'e', but the source declares a, b"
    ):
        translate(source, function_constants={"a": True, "b": (1, 2), "e": 1})


KERNEL = "kernel void f(device int* x) {{ {} }}"
REFUSED = [
    ("kernel void f(device int* x [[buffer(31)]]) {}", 1, r"buffer\(31\)"),
    ("kernel void f(device int* x [[buffer(1)]],\n device int* y [[buffer(1)]]) {}", 2, "bound to"),
    ("kernel void f(device int* x,\n int n) {}", 2, "neither a pointer or reference"),
    ("kernel void f(thread int* x) {}", 1, "device or constant address space"),
    ("kernel void f(threadgroup int* x [[threadgroup(0)]]) {}", 1, r"threadgroup\(n\)"),
    ("kernel void f(texture2d<float> t [[texture(0)]]) {}", 1, r"\[\[texture\]\]"),
    ("kernel void f(Vertex v [[stage_in]]) {}", 1, r"\[\[stage_in\]\]"),
    ("kernel void f(device int* x [[buffer(N)]]) {}", 1, r"buffer\(N\): metalsim needs a number"),
    (KERNEL.format("float4x4 m;"), 1, "does not support 'float4x4'"),
    (KERNEL.format("half2x3 m;"), 1, "does not support 'half2x3'"),
    ("kernel int f(device int* x) {}", 1, "must return void"),
    ("struct S {\n kernel void f(device int* x) {}\n};", 2, "member function"),
    ("[[visible]] float f(float x) { return x; }", 1, "attribute 'visible'"),
    ("fragment float4 f() {}", 1, "does not support 'fragment'"),
    ("void f(texture2d<float> t) {}", 1, "does not support 'texture2d'"),
    (KERNEL.format("double y;"), 1, "'double' is not supported in Metal"),
    (KERNEL.format("goto end;"), 1, "'goto'"),
    (KERNEL.format("delete x;"), 1, "'delete'"),
    (KERNEL.format("threadgroup int a = 3;"), 1, "cannot have an initializer"),
    (KERNEL.format("threadgroup struct { int a; } s;"), 1, "declare the type"),
    (KERNEL.format("threadgroup struct S { int a; } s;"), 1, "declare the type"),
    (KERNEL.format("alignas(64) threadgroup int a;"), 1, "alignas"),
    (KERNEL.format("device int* threadgroup p;"), 1, "statement of its own"),
    (KERNEL.format("x[0] = 1.0l;"), 1, "long double"),
    ("void f() { threadgroup int a; }", 1, "in the body of a kernel"),
    ("threadgroup int a;", 1, "program scope variable"),
    ("struct S { threadgroup int a; };", 1, "in the body of a kernel"),
    ("\nint counter = 0;", 2, "program scope variable must reside in constant"),
    ("constexpr int N = 3;", 1, "program scope variable must reside in constant"),
    ("static float table[2] = {1, 2};", 1, "program scope variable must reside in constant"),
    ('template [[host_name("x")]] [[kernel]] decltype(g<int>) g<int>;', 1, "no kernel template"),
    ("kernel void f() {}\nkernel void f(device int* x) {}", 2, "two kernels are named 'f'"),
    ('extern "C" { int f(); }', 1, "extern blocks"),
    ("void f() { } }", 1, "extraneous closing brace"),
    ("void f() { {", 1, "expected '}'"),
]


def test_constants_and_enumerators_as_buffer_indices() -> None:
    program = translate(
        "enum Slots { kInput, kOutput = 5, kScale };\n"
        "enum class Other : uint { first = kScale + 1 };\n"
        "constant constexpr uint base = 2 * kOutput, unused = 1;\n"
        "constant float real = 1.5;\n"
        "kernel void f(device int* a [[buffer(kOutput)]], device int* b [[buffer(kScale)]],\n"
        "  device int* c [[buffer(Other::first)]], device int* d [[buffer(base + 1)]],\n"
        "  device int* e [[buffer(kInput)]]) {}"
    )
    slots = [argument.buffer for argument in program.kernels[0].arguments]
    assert slots == [5, 6, 7, 11, 0]


@pytest.mark.parametrize(("source", "line", "message"), REFUSED)
def test_refused(source: str, line: int, message: str) -> None:
    with pytest.raises(SyntaxError, match=message) as caught:
        translate(source)
    error = caught.value
    assert error.lineno == line
    assert error.offset is not None
    assert str(error).startswith(f"program_source:{line}:{error.offset}: error: ")
    assert error.text == source.split("\n")[line - 1]


def test_a_list_in_braces_may_be_an_argument() -> None:
    source = "struct A { int x; };\nint g(A a);\nint f() { return g(A{1}) + g({2}); }"
    assert "g(A{1}) + g({2})" in body(source)
