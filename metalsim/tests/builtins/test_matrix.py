"""simdgroup_matrix: Apple's layout of lanes, loads and stores, products of every type."""

from __future__ import annotations

import pytest
import torch

import metalsim

TYPES = {"float": torch.float32, "half": torch.float16, "bfloat": torch.bfloat16}
MIXED = {  # result, left, right, addend
    "fhhf": ("float", "half", "half", "float"),
    "fbbf": ("float", "bfloat", "bfloat", "float"),
    "ffhf": ("float", "float", "half", "float"),
    "hhhh": ("half", "half", "half", "half"),
    "bbbb": ("bfloat", "bfloat", "bfloat", "bfloat"),
    "ffff": ("float", "float", "float", "float"),
    "hfff": ("half", "float", "float", "float"),
    "fhhh": ("float", "half", "half", "half"),
}
SOURCE = """
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

kernel void layout(device const float* in, device float* out,
                   uint lane [[thread_index_in_simdgroup]]) {
  simdgroup_float8x8 m;
  simdgroup_load(m, in, 8);
  out[2 * lane] = m.thread_elements()[0];
  out[2 * lane + 1] = m.thread_elements().y;
}

template <typename T>
kernel void moves(device const T* in, device T* out, constant uint4& shape,
                  uint lane [[thread_index_in_simdgroup]]) {
  threadgroup T stage[8 * 12];
  simdgroup_matrix<T, 8, 8> m, t;
  simdgroup_load(m, in, shape.x, ulong2(shape.y, shape.z), shape.w != 0);
  simdgroup_store(m, stage + 2, 12, ulong2(1, 0));
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_load(t, stage, 12, ulong2(3, 0));
  simdgroup_store(t, out, shape.x, ulong2(shape.y, shape.z), shape.w != 0);
}
template [[host_name("moves_float")]] [[kernel]] decltype(moves<float>) moves<float>;
template [[host_name("moves_half")]] [[kernel]] decltype(moves<half>) moves<half>;
template [[host_name("moves_bfloat")]] [[kernel]] decltype(moves<bfloat>) moves<bfloat>;

template <typename D, typename A, typename B, typename C>
kernel void products(device const A* a, device const B* b, device const C* c, device D* sum,
                     device D* product) {
  simdgroup_matrix<A, 8, 8> ma;
  simdgroup_matrix<B, 8, 8> mb;
  simdgroup_matrix<C, 8, 8> mc;
  simdgroup_matrix<D, 8, 8> md;
  simdgroup_load(ma, a);
  simdgroup_load(mb, b);
  simdgroup_load(mc, c);
  simdgroup_multiply_accumulate(md, ma, mb, mc);
  simdgroup_store(md, sum);
  simdgroup_multiply(md, ma, mb);
  simdgroup_store(md, product);
}

kernel void filled(device float* out, device half* diagonal) {
  simdgroup_float8x8 f = make_filled_simdgroup_matrix<float, 8, 8>(2.5f);
  simdgroup_store(f, out);
  simdgroup_half8x8 d = make_diagonal_simdgroup_matrix<half, 8, 8>(3.0h);
  simdgroup_store(d, diagonal);
  simdgroup_half8x8 e(1.0h);
  simdgroup_store(e, diagonal + 64);
}
""" + "".join(
    f'template [[host_name("products_{name}")]] [[kernel]] '
    f"decltype(products<{', '.join(types)}>) products<{', '.join(types)}>;\n"
    for name, types in MIXED.items()
)


@pytest.fixture
def library(compiler: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


def test_layout(library: metalsim.ShaderLibrary):
    """The map that MLX and others state: quad = lane / 4, two neighbours of a row each."""
    out = torch.zeros(32, 2)
    library.layout(torch.arange(64.0), out, threads=32, group_size=32)
    for lane in range(32):
        quad = lane // 4
        row, column = (quad & 4) + (lane // 2) % 4, (quad & 2) * 2 + (lane % 2) * 2
        assert out[lane].tolist() == [row * 8 + column, row * 8 + column + 1]


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("transpose", [0, 1])
def test_loads_and_stores(library: metalsim.ShaderLibrary, name: str, transpose: int):
    stride, x, y = 24, 5, 3
    values = torch.randn(16, stride).to(TYPES[name])
    out = torch.zeros_like(values)
    shape = [stride, x, y, transpose]
    kernel = getattr(library, f"moves_{name}")
    kernel(values, out, shape, threads=32, group_size=32, arg_casts={2: "int32"})
    expected = torch.zeros_like(values)
    expected[y : y + 8, x : x + 8] = values[y : y + 8, x : x + 8]
    assert torch.equal(out, expected)


@pytest.mark.parametrize("name", TYPES)
def test_transpose_transposes(library: metalsim.ShaderLibrary, name: str):
    """What `moves` cannot see, because it transposes twice."""
    source = """
using namespace metal;
kernel void f(device const T* in, device T* out) {
  simdgroup_matrix<T, 8, 8> m;
  simdgroup_load(m, in, 10, 0, true);
  simdgroup_store(m, out);
}""".replace("T*", f"{name}*").replace("<T,", f"<{name},")
    values = torch.randn(8, 10).to(TYPES[name])
    out = torch.zeros(8, 8, dtype=TYPES[name])
    metalsim.compile_shader(source).f(values, out, threads=32, group_size=32)
    assert torch.equal(out, values[:, :8].T)


@pytest.mark.parametrize("name", MIXED)
def test_products(library: metalsim.ShaderLibrary, name: str):
    result, *operands = (TYPES[t] for t in MIXED[name])
    generator = torch.Generator().manual_seed(3)
    a, b, c = (torch.randn(8, 8, generator=generator).to(t) for t in operands)
    total, product = torch.zeros(8, 8, dtype=result), torch.zeros(8, 8, dtype=result)
    getattr(library, f"products_{name}")(a, b, c, total, product, threads=32, group_size=32)
    for got, exact in (
        (total, a.double() @ b.double() + c.double()),
        (product, a.double() @ b.double()),
    ):
        # One rounding to the result's type, on top of eight float operations.
        budget = exact.abs() * torch.finfo(result).eps / 2 + 8 * 2.0**-24 * 20
        assert ((got.double() - exact).abs() <= budget).all()


def test_filled_and_diagonal(library: metalsim.ShaderLibrary):
    out, diagonal = torch.zeros(8, 8), torch.ones(2, 8, 8, dtype=torch.float16)
    library.filled(out, diagonal, threads=32, group_size=32)
    assert (out == 2.5).all()
    assert torch.equal(diagonal, torch.stack([3 * torch.eye(8), torch.eye(8)]).half())


@pytest.mark.parametrize("type_name", ["int", "char"])
def test_other_element_types_are_refused(compiler: str, type_name: str):
    with pytest.raises(SyntaxError, match="invalid element type"):
        metalsim.compile_shader(
            f"using namespace metal; kernel void f() {{ simdgroup_matrix<{type_name}, 8, 8> m; }}"
        )
