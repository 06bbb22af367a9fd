"""matmul2d on tensors in memory, against numpy: scopes, transposes, modes, extents, types."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch

import metalsim

Tensors = Callable[..., metalsim.ShaderLibrary]

LAYOUTS = ["apple10", "older", "random:0", "random:1", "random:2"]
TYPES = {
    "half": torch.float16,
    "bfloat": torch.bfloat16,
    "float": torch.float32,
    "int8_t": torch.int8,
    "uint8_t": torch.uint8,
    "int32_t": torch.int32,
}

SHAPES = """
// One tile a threadgroup; the matrices may end anywhere in it. size: rows, columns, depth.
template <int m, int n, int k, bool ta, bool tb, bool adds, class Scope>
kernel void product(device half* a, device half* b, device float* c, constant int3& size,
                    uint2 group [[threadgroup_position_in_grid]]) {
  constexpr auto mode = adds ? matmul2d_descriptor::mode::multiply_accumulate
                             : matmul2d_descriptor::mode::multiply;
  constexpr matmul2d_descriptor descriptor(m, n, k, ta, tb, false, mode);
  matmul2d<descriptor, Scope> op;
  const int rows = size.x, columns = size.y, depth = size.z;
  auto all_a = tensor(a, ta ? dextents<int, 2>(rows, depth) : dextents<int, 2>(depth, rows));
  auto all_b = tensor(b, tb ? dextents<int, 2>(depth, columns) : dextents<int, 2>(columns, depth));
  auto all_c = tensor(c, dextents<int, 2>(columns, rows));
  const int row = group.y * m, column = group.x * n;
  auto mc = all_c.slice(column, row);
  const int step = k > 0 ? k : depth;
  for (int start = 0; start < depth; start += step) {
    auto ma = ta ? all_a.slice(row, start) : all_a.slice(start, row);
    auto mb = tb ? all_b.slice(start, column) : all_b.slice(column, start);
    op.run(ma, mb, mc);
  }
}
#define PRODUCT(name, ...) \\
  template [[host_name(name)]] [[kernel]] decltype(product<__VA_ARGS__>) product<__VA_ARGS__>;
"""
SCOPES = {
    "simdgroup": ("execution_simdgroup", 32, (16, 32)),
    "four": ("execution_simdgroups<4>", 128, (64, 32)),
    "wide": ("execution_simdgroups<4>", 128, (32, 48)),
    "three": ("execution_simdgroups<3>", 96, (16, 40)),
    "thread": ("execution_thread", 1, (2, 8)),
}
DEPTHS = {"dynamic": "int(dynamic_extent)", "length": "dynamic_length_v<int>", "static": "32"}


def shape_kernels() -> str:
    lines = [
        f'PRODUCT("{scope}_{depth}_{int(ta)}{int(tb)}{int(adds)}", {m}, {n}, {DEPTHS[depth]}, '
        f"{str(ta).lower()}, {str(tb).lower()}, {str(adds).lower()}, {name})"
        for scope, (name, _, (m, n)) in SCOPES.items()
        for depth, ta, tb, adds in CASES[scope]
    ]
    return SHAPES + "\n".join(lines) + "\n"


TRANSPOSES = list(itertools.product((False, True), repeat=2))
CASES = {
    "simdgroup": [
        *(("dynamic", ta, tb, False) for ta, tb in TRANSPOSES),
        *(("static", ta, tb, True) for ta, tb in TRANSPOSES),
        ("length", False, False, True),
    ],
    "four": [("dynamic", ta, tb, True) for ta, tb in TRANSPOSES],
    "wide": [("dynamic", False, False, True), ("static", True, True, True)],
    "three": [("static", False, True, True), ("dynamic", True, False, False)],
    "thread": [("dynamic", ta, tb, ta) for ta, tb in TRANSPOSES],
}
FLAT = [(scope, *case) for scope, cases in CASES.items() for case in cases]


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def bound(terms: int, *products: np.ndarray) -> np.ndarray:
    """What `terms` roundings to float can change in a sum of these absolute values."""
    return terms * np.finfo(np.float32).eps * sum(np.abs(product) for product in products)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(64, 64, 64), (35, 45, 75)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_shapes(tensor_library: Tensors, layout: str, rows: int, columns: int, depth: int) -> None:
    library = tensor_library(shape_kernels(), cooperative_layout=layout)
    a = normal(0, rows, depth).astype(np.float16)
    b = normal(1, depth, columns).astype(np.float16)
    exact = a.astype(float) @ b.astype(float)
    size = np.abs(a).astype(float) @ np.abs(b).astype(float)
    for scope, inner, ta, tb, adds in FLAT:
        _, threads, (m, n) = SCOPES[scope]
        before = normal(2, rows, columns) if adds else np.zeros((rows, columns), np.float32)
        # A border that no operation may touch.
        memory = np.full(rows * columns + 64, np.nan, np.float32)
        memory[: rows * columns] = before.reshape(-1)
        kernel = getattr(library, f"{scope}_{inner}_{int(ta)}{int(tb)}{int(adds)}")
        grid = [-(-columns // n) * threads, -(-rows // m)]
        left, right = (np.ascontiguousarray(x.T if t else x) for x, t in ((a, ta), (b, tb)))
        shape = np.array([rows, columns, depth], np.int32)
        kernel(left, right, memory, shape, threads=grid, group_size=[threads, 1])
        result = memory[: rows * columns].reshape(rows, columns)
        errors = np.abs(result - before - exact)
        assert (errors <= bound(depth + 1, size, before)).all(), (scope, inner, ta, tb, adds)
        assert np.isnan(memory[rows * columns :]).all(), (scope, inner)


def test_with_each_compiler(tensor_library: Tensors, compiler: str) -> None:
    test_shapes(tensor_library, "random:3", 35, 45, 75)


def supported(left: str, right: str, result: str) -> bool:
    """Apple's table, as MPPTensorOpsMatMul2d.h lists it row by row."""
    rows = """half half half|half int8_t half|half uint8_t half|int8_t half half|uint8_t half half|
        half half float|half float float|half int8_t float|half uint8_t float|float half float|
        float float float|float int8_t float|float uint8_t float|int8_t half float|
        uint8_t half float|int8_t float float|uint8_t float float|int8_t int8_t int32_t|
        uint8_t uint8_t int32_t|bfloat bfloat bfloat|bfloat bfloat float|bfloat float float|
        bfloat int8_t bfloat|bfloat int8_t float|float bfloat float|int8_t bfloat bfloat|
        int8_t bfloat float|bfloat half bfloat|bfloat half half|bfloat half float|
        half bfloat bfloat|half bfloat half|half bfloat float|bfloat uint8_t bfloat|
        bfloat uint8_t float|uint8_t bfloat bfloat|uint8_t bfloat float"""
    return f"{left} {right} {result}" in [row.strip() for row in rows.split("|")]


TRIPLES = list(itertools.product(TYPES, repeat=3))


def test_types(tensor_library: Tensors) -> None:
    """Every row of Apple's table: exact integers, and results rounded once."""
    known = [triple for triple in TRIPLES if supported(*triple)]
    kernels = [
        f"""kernel void f{i}(device {a}* a, device {b}* b, device {c}* c) {{
          auto ta = tensor(a, extents<int, 16, 16>()), tb = tensor(b, extents<int, 16, 16>());
          auto tc = tensor(c, extents<int, 16, 16>());
          matmul2d<matmul2d_descriptor(16, 16, 16), execution_simdgroup> op;
          op.run(ta, tb, tc);
        }}""".replace(", tb =", "; auto tb =")
        for i, (a, b, c) in enumerate(known)
    ]
    library = tensor_library("\n".join(kernels))
    generator = torch.Generator().manual_seed(0)
    for i, triple in enumerate(known):
        a, b, c = (TYPES[name] for name in triple)
        low = 0 if torch.uint8 in (a, b) else -9
        left, right = (
            torch.randint(low, 10, (16, 16), generator=generator).to(dtype) for dtype in (a, b)
        )
        out = torch.zeros(16, 16, dtype=c)
        getattr(library, f"f{i}")(left, right, out, threads=32, group_size=32)
        assert torch.equal(out, (left.double() @ right.double()).to(c)), triple


def test_refused_types(tensor_library: Tensors) -> None:
    """No combination beside Apple's table is accepted."""
    checks = "".join(
        f"static_assert(metalsim::multiplies<{a}, {b}, {c}>() == {str(known).lower()});\n"
        for a, b, c in TRIPLES
        for known in (supported(a, b, c),)
    )
    others = "".join(
        f"static_assert(!metalsim::multiplies<{t}, {t}, float>() && "
        f"!metalsim::multiplies<half, half, {t}>());\n"
        for t in ("char", "short", "int", "uint", "long", "bool")
    )
    assert len(TRIPLES) == 216
    tensor_library(checks + others + "kernel void f(device int* x) {}")


RELAXED = "".join(
    f"""kernel void {name}(device float* a, device float* b, device float* c) {{
      TENSORS(a, b, c);
      matmul2d<matmul2d_descriptor(16, 32, 16, false, false, {relaxed}), {scope}> op;
      op.run(ta, tb, tc);
    }}
    """
    for name, relaxed, scope in (
        ("exact", "false", "execution_simdgroup"),
        ("relaxed", "true", "execution_simdgroup"),
        ("thread_relaxed", "true", "execution_thread"),
    )
)


def test_relaxed_precision_cuts_floats(tensor_library: Tensors) -> None:
    library = tensor_library(RELAXED)
    a, b = normal(0, 16, 16), normal(1, 16, 32)
    cut_a, cut_b = ((x.view(np.uint32) & 0xFFFFE000).view(np.float32) for x in (a, b))
    results = {}
    for name, threads in (("exact", 32), ("relaxed", 32), ("thread_relaxed", 1)):
        results[name] = np.zeros((16, 32), np.float32)
        getattr(library, name)(a, b, results[name], threads=threads, group_size=threads)
    limit = bound(17, np.abs(a).astype(float) @ np.abs(b).astype(float))
    assert (np.abs(results["exact"] - a.astype(float) @ b) <= limit).all()
    for name in ("relaxed", "thread_relaxed"):
        assert (np.abs(results[name] - cut_a.astype(float) @ cut_b) <= limit).all()
        assert not (np.abs(results[name] - a.astype(float) @ b) <= limit).all()


VIEWS = """
kernel void strided(device half* a, device half* b, device float* c, constant int* strides) {
  auto ta = tensor(a, dextents<int, 2>(16, 16), array<int, 2>{strides[0], strides[1]});
  auto tb = tensor(b, dextents<int, 2>(32, 16), array<int, 2>{strides[2], strides[3]});
  auto tc = tensor(c, dextents<int, 2>(32, 16), array<int, 2>{strides[4], strides[5]});
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  op.run(ta, tb, tc);
}
kernel void parts(device float* x, device float* out) {
  auto whole = tensor(x, dextents<int, 2>(10, 6));
  auto part = whole.slice(3, 2);
  auto fixed = whole.slice<4, dynamic_extent>(3, 2);
  auto both = part.slice(1, 1);
  out[0] = part[0, 0];
  out[1] = fixed[2, 1];
  out[2] = both[array<int, 2>{1, 1}];
  out[3] = part.get_extent(0);
  out[4] = part.extents().extent(1);
  out[5] = fixed.get_extent(0);
  out[6] = fixed.get_static_extent(0);
  out[7] = fixed.get_extent(1);
  out[8] = both.get_extent(0) + both.get_stride(1) + both.get_rank();
  auto line = tensor(x, extents<int, 60>());
  line[7] = -1.0f;
  out[9] = whole[7, 0];
}
"""


def test_strides(tensor_library: Tensors) -> None:
    library = tensor_library(VIEWS)
    a, b = (normal(i, 64, 64).astype(np.float16) for i in range(2))
    c = np.full((64, 64), 0, np.float32)
    strides = np.array([2, 64, 64, 1, 64, 2], np.int32)
    library.strided(a, b, c, strides, threads=32, group_size=32)
    left, right = a[:16, :32:2].astype(float), b[:32, :16].T.astype(float)
    limit = bound(16, np.abs(left) @ np.abs(right))
    assert (np.abs(c[:32, :32:2].T - left @ right) <= limit).all()
    assert (c[:, 1::2] == 0).all()
    assert (c[32:] == 0).all()


def test_slices(tensor_library: Tensors) -> None:
    x, out = np.arange(60, dtype=np.float32), np.zeros(10, np.float32)
    tensor_library(VIEWS).parts(x, out, threads=1)
    assert out.tolist() == [23, 35, 45, 7, 4, 4, 4, 4, 6 + 10 + 2, -1]


CONVENTIONS = "".join(
    f"""kernel void {name}(device half* a, device half* b, device float* c) {{
      TENSORS(a, b, c);
      constexpr auto mode = matmul2d_descriptor::mode::{mode};
      matmul2d<matmul2d_descriptor(16, 32, 16, false, false, false, mode), execution_simdgroup> op;
      auto sums = op.get_destination_cooperative_tensor<decltype(ta), decltype(tb), float>();
      {body}
    }}
    """
    for name, mode, body in (
        ("memory_multiply", "multiply", "op.run(ta, tb, tc);"),
        ("memory_accumulate", "multiply_accumulate", "op.run(ta, tb, tc);"),
        ("lanes_multiply", "multiply", "op.run(ta, tb, sums); sums.store(tc);"),
        ("lanes_accumulate", "multiply_accumulate", "op.run(ta, tb, sums); sums.store(tc);"),
    )
)


@pytest.mark.parametrize("layout", ["apple10", "random:0", "random:1", "random:2", "random:3"])
def test_what_multiply_does_with_a_destination(tensor_library: Tensors, layout: str) -> None:
    """`multiply` overwrites what lanes hold; for memory Apple's header also says that it adds."""
    library = tensor_library(CONVENTIONS, cooperative_layout=layout)
    a, b = np.ones((16, 16), np.float16), np.ones((16, 32), np.float16)
    adds = layout in ("random:2", "random:3")
    expected = {
        "memory_multiply": 19.0 if adds else 16.0,
        "memory_accumulate": 19.0,
        "lanes_multiply": 16.0,
    }
    for name, value in expected.items():
        c = np.full((16, 32), 3, np.float32)
        getattr(library, name)(a, b, c, threads=32, group_size=32)
        assert (c == value).all(), name


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_uninitialised_destination_is_poison(tensor_library: Tensors, layout: str) -> None:
    library = tensor_library(CONVENTIONS, cooperative_layout=layout)
    a, b = np.ones((16, 16), np.float16), np.ones((16, 32), np.float16)
    c = np.zeros((16, 32), np.float32)
    library.lanes_accumulate(a, b, c, threads=32, group_size=32)
    assert np.isnan(c).all()
