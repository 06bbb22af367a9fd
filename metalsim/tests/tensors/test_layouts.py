"""Which lane holds which element of a cooperative tensor, and kernels that know it by heart."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import metalsim

Tensors = Callable[..., metalsim.ShaderLibrary]

LAYOUTS = ["apple10", "older", "random:0", "random:1", "random:2", "random:3"]

PLACES = """
// For every slot of every thread: column, row, or -1 where it is empty; the capacity comes first.
template <class Tensor>
void write_places(thread Tensor& ct, device int* out, uint thread_index) {
  if (thread_index == 0) out[0] = ct.get_capacity();
  device int* mine = out + 1 + thread_index * ct.get_capacity() * 2;
  for (uint16_t i = 0; i < ct.get_capacity(); ++i) {
    const auto index = ct.get_multidimensional_index(i);
    const bool valid = ct.is_valid_element(i);
    mine[2 * i] = valid ? index[0] : -1;
    mine[2 * i + 1] = valid ? index[1] : -1;
  }
}
template <int m, int n, int k, bool ta, bool tb>
kernel void inputs(device int* left, device int* right, device int* destination,
                   uint t [[thread_index_in_threadgroup]]) {
  matmul2d<matmul2d_descriptor(m, n, k, ta, tb), execution_simdgroup> op;
  auto a = op.template get_left_input_cooperative_tensor<half, half, float>();
  auto b = op.template get_right_input_cooperative_tensor<half, half, float>();
  auto c = op.template get_destination_cooperative_tensor<decltype(a), decltype(b), float>();
  write_places(a, left, t);
  write_places(b, right, t);
  write_places(c, destination, t);
}
template [[host_name("nn")]] [[kernel]] decltype(inputs<16, 32, 16, false, false>)
    inputs<16, 32, 16, false, false>;
template [[host_name("nt")]] [[kernel]] decltype(inputs<16, 32, 16, false, true>)
    inputs<16, 32, 16, false, true>;
template [[host_name("tn")]] [[kernel]] decltype(inputs<32, 16, 16, true, false>)
    inputs<32, 16, 16, true, false>;
template <int m, int n, class Scope>
kernel void destinations(device half* x, device int* out, uint t [[thread_index_in_threadgroup]]) {
  matmul2d<matmul2d_descriptor(m, n), Scope> op;
  using Memory = decltype(tensor(x, dextents<int, 2>(1, 1)));
  auto c = op.template get_destination_cooperative_tensor<Memory, Memory, float>();
  write_places(c, out, t);
}
#define DESTINATIONS(name, ...) template [[host_name(name)]] [[kernel]] \\
    decltype(destinations<__VA_ARGS__>) destinations<__VA_ARGS__>;
DESTINATIONS("d16x8", 16, 8, execution_simdgroup)
DESTINATIONS("d4x16", 4, 16, execution_simdgroup)
DESTINATIONS("d48x32", 48, 32, execution_simdgroups<4>)
DESTINATIONS("d64x32", 64, 32, execution_simdgroups<4>)
DESTINATIONS("d2x8", 2, 8, execution_thread)
"""


def places(out: np.ndarray, threads: int) -> np.ndarray:
    """(threads, capacity, 2): column and row."""
    capacity = int(out[0])
    return out[1 : 1 + threads * capacity * 2].reshape(threads, capacity, 2)


def test_apple10_is_as_measured_on_an_m5(tensor_library: Tensors) -> None:
    """The table that MNN's authors read off an M5 (macOS 26.6) with get_multidimensional_index."""
    library = tensor_library(PLACES)
    for name, left_rows, right_rows in (("nn", 16, 16), ("nt", 16, 32), ("tn", 16, 16)):
        outs = [np.zeros(4096, np.int32) for _ in range(3)]
        getattr(library, name)(*outs, threads=32, group_size=32)
        for out, rows, fragments in zip(outs, (left_rows, right_rows, 16), (1, 2, 2), strict=True):
            found = places(out, 32)
            is_tall = rows == 32 or (name == "tn" and out is outs[2])
            if name == "tn" and out is not outs[2]:
                fragments = 2 if out is outs[0] else 1
            assert found.shape[1] == 8 * fragments, (name, found.shape)
            for lane in range(32):
                fm = (lane >> 2 & 4) | (lane >> 1 & 3)
                fn = ((lane >> 2 & 2) | (lane & 1)) * 4
                for i in range(8 * fragments):
                    far = (i >> 3) * 16
                    column = fn + (i & 3) + (0 if is_tall else far)
                    row = fm + (i >> 2 & 1) * 8 + (far if is_tall else 0)
                    assert found[lane, i].tolist() == [column, row], (name, lane, i)


def test_older_is_the_split_pair(tensor_library: Tensors) -> None:
    """torch's MppAttention: columns {0, 1, 8, 9} from its pair, rows eight apart."""
    outs = [np.zeros(4096, np.int32) for _ in range(3)]
    library = tensor_library(PLACES, cooperative_layout="older")
    library.nn(*outs, threads=32, group_size=32)
    for lane in range(32):
        row = (lane >> 4 & 1) * 4 + (lane >> 1 & 3)
        column = (lane >> 3 & 1) * 4 + (lane & 1) * 2
        expected = [[column + c, row + r] for r in (0, 8) for c in (0, 1, 8, 9)]
        assert places(outs[0], 32)[lane].tolist() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_has_one_place(tensor_library: Tensors, layout: str) -> None:
    library = tensor_library(PLACES, cooperative_layout=layout)
    x = np.zeros(1, np.float16)
    sizes = [("d16x8", 16, 8, 32), ("d4x16", 4, 16, 32), ("d48x32", 48, 32, 128)]
    for name, rows, columns, threads in [*sizes, ("d64x32", 64, 32, 128), ("d2x8", 2, 8, 1)]:
        out = np.zeros(1 << 14, np.int32)
        getattr(library, name)(x, out, threads=threads, group_size=threads)
        found = places(out, threads).reshape(-1, 2)
        valid = found[found[:, 0] >= 0]
        everything = [[column, row] for row in range(rows) for column in range(columns)]
        assert sorted(valid.tolist()) == sorted(everything), name
        if layout.startswith("random") and name != "d2x8":
            assert len(valid) < len(found), f"{name} should have empty slots"


TYPED = """
// S in float by one operation, rounded slot by slot into a destination of another element type or
// of an operation of another depth: the same elements only where layouts agree.
template <class To, int depth>
kernel void copies(device half* a, device half* b, device float* c) {
  TENSORS(a, b, c);
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  matmul2d<matmul2d_descriptor(16, 32, depth), execution_simdgroup> other;
  auto s = op.template get_destination_cooperative_tensor<decltype(ta), decltype(tb), float>();
  auto p = other.template get_destination_cooperative_tensor<decltype(ta), decltype(tb), To>();
  op.run(ta, tb, s);
  for (uint16_t i = 0; i < s.get_capacity(); ++i) p[i] = To(s[i]);
  for (uint16_t i = 0; i < p.get_capacity(); ++i) {
    if (!p.is_valid_element(i)) continue;
    const auto index = p.get_multidimensional_index(i);
    tc[index[0], index[1]] = p[i];
  }
}
template [[host_name("type")]] [[kernel]] decltype(copies<half, 16>) copies<half, 16>;
template [[host_name("depth")]] [[kernel]] decltype(copies<float, 32>) copies<float, 32>;
template [[host_name("same")]] [[kernel]] decltype(copies<float, 16>) copies<float, 16>;
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_may_depend_on_type_and_operation(tensor_library: Tensors, layout: str) -> None:
    library = tensor_library(TYPED, cooperative_layout=layout)
    a = np.eye(16, dtype=np.float16)
    b = np.arange(512, dtype=np.float16).reshape(16, 32)
    for kernel in ("same", "type", "depth"):
        c = np.zeros((16, 32), np.float32)
        getattr(library, kernel)(a, b, c, threads=32, group_size=32)
        agrees = kernel == "same" or layout not in ("random:1", "random:3")
        assert (c == b).all() == agrees, kernel


def test_random_layouts_differ_and_repeat(tensor_library: Tensors) -> None:
    seen = list[list[int]]()
    for seed in (5, 6, 5):
        outs = [np.zeros(4096, np.int32) for _ in range(3)]
        library = tensor_library(PLACES, cooperative_layout=f"random:{seed}")
        library.nn(*outs, threads=32, group_size=32)
        seen.append(outs[0].tolist())
    assert seen[0] == seen[2]
    assert seen[0] != seen[1]


HARD_CODED = """
// Doubles column 3 of a tile, with an M5's lane layout written down instead of asked for.
kernel void relies_on_apple10(device half* a, device half* b, device float* c,
                              uint lane [[thread_index_in_simdgroup]]) {
  TENSORS(a, b, c);
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  auto sums = op.get_destination_cooperative_tensor<decltype(ta), decltype(tb), float>();
  op.run(ta, tb, sums);
  const short first_column = ((lane >> 2 & 2) | (lane & 1)) * 4;
  for (short i = 0; i < 16; ++i)
    if (first_column + (i & 3) + (i >> 3) * 16 == 3) sums[i] *= 2;
  sums.store(tc);
}
kernel void asks(device half* a, device half* b, device float* c) {
  TENSORS(a, b, c);
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  auto sums = op.get_destination_cooperative_tensor<decltype(ta), decltype(tb), float>();
  op.run(ta, tb, sums);
  for (short i = 0; i < sums.get_capacity(); ++i)
    if (sums.is_valid_element(i) && sums.get_multidimensional_index(i)[0] == 3) sums[i] *= 2;
  sums.store(tc);
}
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kernel_that_relies_on_one_layout_goes_wrong_in_others(
    tensor_library: Tensors, layout: str
) -> None:
    library = tensor_library(HARD_CODED, cooperative_layout=layout)
    a, b = np.ones((16, 16), np.float16), np.ones((16, 32), np.float16)
    expected = np.full((16, 32), 16, np.float32)
    expected[:, 3] *= 2
    for kernel in ("asks", "relies_on_apple10"):
        c = np.zeros((16, 32), np.float32)
        getattr(library, kernel)(a, b, c, threads=32, group_size=32)
        assert (c == expected).all() == (kernel == "asks" or layout == "apple10"), kernel


def test_the_environment_chooses_the_layout(
    tensor_library: Tensors, monkeypatch: pytest.MonkeyPatch
) -> None:
    outs = [np.zeros(4096, np.int32) for _ in range(3)]
    monkeypatch.setenv("METALSIM_COOPERATIVE_LAYOUT", "older")
    tensor_library(PLACES).nn(*outs, threads=32, group_size=32)
    assert places(outs[0], 32)[0, 2].tolist() == [8, 0]
    tensor_library(PLACES, cooperative_layout="apple10").nn(*outs, threads=32, group_size=32)
    assert places(outs[0], 32)[0, 2].tolist() == [2, 0]


@pytest.mark.parametrize("text", ["apple9", "random", "random:-1", "random:x", "older:3"])
def test_unknown_layouts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'must be "apple10", "older" or "random:SEED"'):
        metalsim.compile_shader("kernel void f(device int* x) {}", cooperative_layout=text)
