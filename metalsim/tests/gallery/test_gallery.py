"""Every kernel of the gallery against numpy: in check builds, under two schedules, and on an NVIDIA
GPU where there is one; at sizes that fill the last threadgroup and at sizes that do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metalsim

GALLERY = Path(__file__).parents[2] / "gallery"


def has_gpu() -> bool:
    torch = pytest.importorskip("torch")
    return torch.cuda.is_available()


on_gpu = pytest.param(
    ({"engine": "cuda"}, 0), marks=pytest.mark.skipif(not has_gpu(), reason="needs an NVIDIA GPU")
)
build: dict[str, Any] = {}


@pytest.fixture(
    params=[({"check": True}, 0), ({"check": True}, 1), on_gpu],
    ids=["in order", "seed 1", "cuda"],
    autouse=True,
)
def order(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    options, seed = request.param
    for name, value in options.items():
        monkeypatch.setitem(build, name, value)
    with metalsim.schedule(seed=seed):
        yield


def compiled(name: str, layout: str | None = None) -> metalsim.ShaderLibrary:
    source = (GALLERY / f"{name}.metal").read_text()
    return metalsim.compile_shader(source, cooperative_layout=layout, **build)


def rounding(dtype: type[np.floating], terms: int) -> float:
    """The most that the order of `terms` additions can change, relative to their absolute sum."""
    return float(terms * np.finfo(dtype).eps)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def test_every_kernel_has_a_header_and_a_test() -> None:
    tests = Path(__file__).read_text()
    for file in GALLERY.glob("*.metal"):
        assert file.read_text().startswith("// "), file.name
        assert f'compiled("{file.stem}"' in tests, file.name


@pytest.mark.parametrize("count", [1, 1000, 5000])
def test_reduction(count: int) -> None:
    library = compiled("reduction")
    x, sums, total = normal(count), np.zeros(4, np.float32), np.zeros(1, np.float32)
    library.reduce_sum(x, sums, np.uint32(count), threads=4 * 96, group_size=96)
    library.reduce_sum(sums, total, np.uint32(4), threads=32, group_size=32)
    assert abs(total[0] - x.sum(dtype=float)) <= rounding(np.float32, count) * np.abs(x).sum()


@pytest.mark.parametrize("count", [1, 100, 256, 1000])
def test_scan(count: int) -> None:
    library = compiled("scan")
    x = np.random.default_rng(0).integers(-50, 50, count).astype(np.int32)
    out, totals, total = np.zeros_like(x), np.zeros(-(-count // 256), np.int32), np.zeros(1, "i4")
    library.scan_groups(x, out, totals, threads=count, group_size=256)
    library.scan_groups(totals, totals, total, threads=totals.size)
    library.add_totals(out, totals, threads=count, group_size=256)
    np.testing.assert_array_equal(out, np.cumsum(x))


@pytest.mark.parametrize(("rows", "columns"), [(32, 32), (64, 32), (50, 70), (1, 33)])
def test_transpose(rows: int, columns: int) -> None:
    x, out = normal(rows, columns), np.zeros((columns, rows), np.float32)
    threads = [-(-columns // 32) * 32, -(-rows // 32) * 8]
    size = np.array([columns, rows], np.uint32)
    compiled("transpose").transpose(x, out, size, threads=threads, group_size=[32, 8])
    np.testing.assert_array_equal(out, x.T)


@pytest.mark.parametrize(("rows", "columns", "depth"), [(32, 32, 16), (64, 32, 48), (33, 70, 25)])
def test_matmul(rows: int, columns: int, depth: int) -> None:
    a = normal(rows, depth).astype(np.float16)
    b = normal(depth, columns).astype(np.float16)
    c = np.zeros((rows, columns), np.float32)
    sizes = np.array([rows, columns, depth], np.uint32)
    threads = [-(-columns // 32) * 128, -(-rows // 32)]
    compiled("matmul").matmul(a, b, c, sizes, threads=threads, group_size=[128, 1])
    a, b = a.astype(float), b.astype(float)
    bound = rounding(np.float32, depth) * (np.abs(a) @ np.abs(b))
    assert (np.abs(c - a @ b) <= bound).all()


@pytest.mark.parametrize("layout", ["apple10", "older", "random:1", "random:2"])
@pytest.mark.parametrize(("rows", "columns", "depth"), [(64, 32, 64), (65, 70, 129), (3, 5, 1)])
def test_tensor_matmul(rows: int, columns: int, depth: int, layout: str) -> None:
    a = normal(rows, depth).astype(np.float16)
    b = normal(depth, columns).astype(np.float16)
    bias, c = normal(columns), np.full((rows, columns), np.nan, np.float32)
    threads = [-(-columns // 32) * 128, -(-rows // 64)]
    sizes = np.array([rows, columns, depth], np.int32)
    library = compiled("tensor_matmul", layout)
    library.tensor_matmul(a, b, bias, c, sizes, threads=threads, group_size=[128, 1])
    a, b = a.astype(float), b.astype(float)
    bound = rounding(np.float32, depth + 1) * (np.abs(a) @ np.abs(b) + np.abs(bias))
    assert (np.abs(c - np.maximum(a @ b + bias, 0)) <= bound).all()


@pytest.mark.parametrize("layout", ["apple10", "older", "random:1", "random:2"])
@pytest.mark.parametrize(("rows", "keys"), [(64, 64), (70, 75), (1, 1)])
def test_tensor_attention(rows: int, keys: int, layout: str) -> None:
    q, k, v = (normal(length, 64).astype(np.float16) for length in (rows, keys, keys))
    out = np.full((rows, 64), np.nan, np.float32)
    sizes = np.array([(rows, keys, np.log2(np.e) / 8)], np.dtype("i4,i4,f4"))
    library = compiled("tensor_attention", layout)
    threads = -(-rows // 64) * 128
    library.tensor_attention(q, k, v, out, sizes.view(np.uint8), threads=threads, group_size=128)
    q, k, v = (x.astype(float) for x in (q, k, v))
    scores = q @ k.T / 8
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    # A probability's relative error is the absolute error of its score and of the row's maximum.
    score_error = 2 * rounding(np.float32, 66) * (np.abs(q) @ np.abs(k).T / 8).max()
    bound = (2 * score_error + rounding(np.float32, 2 * keys + 8)) * (p @ np.abs(v))
    assert (np.abs(out - p @ v) <= bound).all()


@pytest.mark.parametrize(("rows", "columns"), [(3, 128), (2, 1000), (2, 5)])
def test_softmax(rows: int, columns: int) -> None:
    x, out = 20 * normal(rows, columns), np.zeros((rows, columns), np.float32)
    library = compiled("softmax")
    library.softmax_rows(x, out, np.uint32(columns), threads=rows * 128, group_size=128)
    exact = np.exp(x.astype(float) - x.max(axis=1, keepdims=True))
    exact /= exact.sum(axis=1, keepdims=True)
    # An exponential's relative error is the absolute error of its argument, at most 100 here.
    assert (np.abs(out - exact) <= rounding(np.float32, columns + 200) * exact + 1e-37).all()


@pytest.mark.parametrize("count", [1, 1000, 4096])
def test_histogram(count: int) -> None:
    x = np.random.default_rng(0).integers(0, 256, count).astype(np.uint8)
    counts = np.zeros(256, np.uint32)
    library = compiled("histogram")
    library.histogram(x, counts, np.uint32(count), threads=4 * 128, group_size=128)
    np.testing.assert_array_equal(counts, np.bincount(x, minlength=256))


@pytest.mark.parametrize(("rows", "columns"), [(32, 16), (37, 21), (1, 1)])
def test_stencil(rows: int, columns: int) -> None:
    field, after = normal(rows, columns), np.zeros((rows, columns), np.float32)
    library = compiled("stencil")
    library.heat_step(field, after, 0.125, threads=[columns, rows], group_size=[16, 16])
    padded = np.pad(field.astype(float), 1)
    around = padded[1:-1, :-2] + padded[1:-1, 2:] + padded[:-2, 1:-1] + padded[2:, 1:-1]
    size = np.abs(field).max()
    assert np.abs(after - (field + 0.125 * (around - 4 * field))).max() <= (
        rounding(np.float32, 6) * 2 * size
    )


def test_bitonic_sort() -> None:
    x = np.random.default_rng(0).integers(-1000, 1000, (3, 256)).astype(np.int32)
    expected = np.sort(x, axis=1)
    compiled("bitonic_sort").bitonic_sort(x, threads=x.size, group_size=256)
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize(("rows", "columns"), [(8, 64), (5, 33)])
def test_matrix_vector(rows: int, columns: int) -> None:
    matrix, x, y = normal(rows, columns), normal(columns), np.zeros(rows, np.float32)
    library = compiled("matrix_vector")
    library.matrix_vector(matrix, x, y, np.uint32(columns), threads=4 * rows, group_size=32)
    exact = matrix.astype(float) @ x.astype(float)
    assert (np.abs(y - exact) <= rounding(np.float32, columns) * (np.abs(matrix) @ np.abs(x))).all()
