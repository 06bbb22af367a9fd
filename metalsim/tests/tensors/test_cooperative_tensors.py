"""Cooperative tensors: which lane holds what, load and store, reductions, and the handing on of a
destination as the next input."""

from __future__ import annotations

import numpy as np
import pytest

import metalsim

LAYOUTS = ["apple10", "older", "random:0", "random:1", "random:2", "random:3"]
HEAD = """
#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;
"""

PLACES = (
    HEAD
    + """
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
)


def places(out: np.ndarray, threads: int) -> np.ndarray:
    """(threads, capacity, 2): column and row."""
    capacity = int(out[0])
    return out[1 : 1 + threads * capacity * 2].reshape(threads, capacity, 2)


def test_apple10_is_as_measured_on_an_m5() -> None:
    """The table that MNN's authors read off an M5 (macOS 26.6) with get_multidimensional_index."""
    library = metalsim.compile_shader(PLACES)
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


def test_older_is_the_split_pair() -> None:
    """torch's MppAttention: columns {0, 1, 8, 9} from its pair, rows eight apart."""
    outs = [np.zeros(4096, np.int32) for _ in range(3)]
    library = metalsim.compile_shader(PLACES, cooperative_layout="older")
    library.nn(*outs, threads=32, group_size=32)
    for lane in range(32):
        row = (lane >> 4 & 1) * 4 + (lane >> 1 & 3)
        column = (lane >> 3 & 1) * 4 + (lane & 1) * 2
        expected = [[column + c, row + r] for r in (0, 8) for c in (0, 1, 8, 9)]
        assert places(outs[0], 32)[lane].tolist() == expected


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_element_has_one_place(layout: str) -> None:
    library = metalsim.compile_shader(PLACES, cooperative_layout=layout)
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


TYPED = (
    HEAD
    + """
// S in float by one operation, rounded slot by slot into a destination of another element type or
// of an operation of another depth: the same elements only where layouts agree.
template <class To, int depth>
kernel void copies(device half* a, device half* b, device float* c) {
  auto ta = tensor(a, extents<int, 16, 16>());
  auto tb = tensor(b, extents<int, 32, 16>());
  auto tc = tensor(c, extents<int, 32, 16>());
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
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_may_depend_on_type_and_operation(layout: str) -> None:
    library = metalsim.compile_shader(TYPED, cooperative_layout=layout)
    a = np.eye(16, dtype=np.float16)
    b = np.arange(512, dtype=np.float16).reshape(16, 32)
    for kernel in ("same", "type", "depth"):
        c = np.zeros((16, 32), np.float32)
        getattr(library, kernel)(a, b, c, threads=32, group_size=32)
        agrees = kernel == "same" or layout not in ("random:1", "random:3")
        assert (c == b).all() == agrees, kernel


def test_random_layouts_differ_and_repeat() -> None:
    seen = list[list[int]]()
    for seed in (5, 6, 5):
        outs = [np.zeros(4096, np.int32) for _ in range(3)]
        library = metalsim.compile_shader(PLACES, cooperative_layout=f"random:{seed}")
        library.nn(*outs, threads=32, group_size=32)
        seen.append(outs[0].tolist())
    assert seen[0] == seen[2]
    assert seen[0] != seen[1]


ACCESS = (
    HEAD
    + """
kernel void round_trip(device float* in, device float* out, device int* counts,
                       constant int2& size, uint lane [[thread_index_in_simdgroup]]) {
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  auto from = tensor(in, dextents<int, 2>(size.x, size.y));
  auto to = tensor(out, dextents<int, 2>(size.x, size.y));
  auto ct = op.get_destination_cooperative_tensor<decltype(from), decltype(from), float>();
  ct.load(from);
  int valid = 0, iterated = 0, empty = 0;
  for (uint16_t i = 0; i < ct.get_capacity(); ++i) {
    if (ct.is_valid_element(i)) {
      valid += ct.is_valid_element(&ct[i]);
      ct.set(i, ct.get(i) + 1);
    } else {
      ct.set(i, 5.0f);
      empty += ct.get(i) == 0.0f;
    }
  }
  for (auto it = ct.begin(); it != ct.end(); it++)
    if (it.is_valid_element() && ct.is_valid_element(it)) {
      ++iterated;
      *it *= 2;
    }
  ct.store(to);
  counts[3 * lane] = valid;
  counts[3 * lane + 1] = iterated;
  counts[3 * lane + 2] = empty + valid == ct.get_capacity();
}

template <class T>
kernel void reductions(device T* in, device T* out, device bool* compatible, constant T& least,
                       uint lane [[thread_index_in_simdgroup]]) {
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  using Memory = tensor<device T, dextents<int, 2>, tensor_inline>;
  Memory from(in, dextents<int, 2>(32, 16));
  auto ct = op.template get_destination_cooperative_tensor<Memory, Memory, T>();
  auto rows = op.template get_row_reduction_destination_cooperative_tensor<Memory, Memory, T>();
  auto columns =
      op.template get_column_reduction_destination_cooperative_tensor<Memory, Memory, T>();
  ct.load(from);
  auto row_line = [&](int i) { return tensor(out + 48 * i, dextents<int, 1>(16)); };
  auto column_line = [&](int i) { return tensor(out + 48 * i + 16, dextents<int, 1>(32)); };
  using identity = reduction_operation_identity<T>;
  reduce_rows(ct, rows);
  reduce_columns(ct, columns);
  rows.store(row_line(0)), columns.store(column_line(0));
  reduce_rows(ct, rows, reduction_operation::max, identity::max_identity);
  reduce_columns(ct, columns, reduction_operation::max, identity::max_identity);
  rows.store(row_line(1)), columns.store(column_line(1));
  reduce_rows(ct, rows, reduction_operation::min, identity::min_identity);
  reduce_columns(ct, columns, reduction_operation::min, identity::min_identity);
  rows.store(row_line(2)), columns.store(column_line(2));
  reduce_rows(ct, rows, reduction_operation::max);  // the identity of a sum: never below 0
  rows.store(row_line(3));

  reduce_rows(ct, rows, reduction_operation::max, least);
  compatible[0] = is_iterator_compatible(ct, rows);
  compatible[1] = is_iterator_compatible(rows, ct);
  if (is_iterator_compatible(ct, rows))
    for (auto it = ct.begin(); it != ct.end(); ++it)
      if (it.is_valid_element()) *it = *it - *rows.map_iterator(it);
  ct.store(from);
}
template [[host_name("reductions_float")]] [[kernel]] decltype(reductions<float>) reductions<float>;
template [[host_name("reductions_half")]] [[kernel]] decltype(reductions<half>) reductions<half>;
"""
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("columns", "rows"), [(32, 16), (21, 5), (40, 20)])
def test_load_get_set_iterate_store(columns: int, rows: int, layout: str) -> None:
    library = metalsim.compile_shader(ACCESS, cooperative_layout=layout, check=True)
    x = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    out, counts = np.full((rows, columns), -1, np.float32), np.zeros((32, 3), np.int32)
    size = np.array([columns, rows], np.int32)
    library.round_trip(x, out, counts, size, threads=32, group_size=32)
    expected = np.full_like(out, -1)
    expected[:16, :32] = (2 * (x + 1))[:16, :32]
    np.testing.assert_array_equal(out, expected)
    assert counts[:, 0].sum() == counts[:, 1].sum() == 16 * 32
    assert counts[:, 2].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float16], ids=["float", "half"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_reductions(layout: str, dtype: type[np.floating]) -> None:
    library = metalsim.compile_shader(ACCESS, cooperative_layout=layout)
    # Multiples of 1/4 add up exactly in half too.
    x = np.random.default_rng(0).integers(-32, -1, (16, 32)).astype(dtype) / dtype(4)
    before, out, compatible = x.copy(), np.zeros((4, 48), dtype), np.zeros(2, bool)
    kernel = library.reductions_float if dtype is np.float32 else library.reductions_half
    kernel(x, out, compatible, dtype(-np.inf), threads=32, group_size=32)
    for line, operation in enumerate((np.sum, np.max, np.min)):
        np.testing.assert_array_equal(out[line, :16], operation(before, axis=1))
        np.testing.assert_array_equal(out[line, 16:], operation(before, axis=0))
    assert (out[3, :16] == 0).all()
    agrees = layout not in ("random:1", "random:3")
    assert compatible.tolist() == [agrees, False]
    shifted = before - before.max(axis=1, keepdims=True) if agrees else before
    np.testing.assert_array_equal(x, shifted)


CHAIN = (
    HEAD
    + """
// O = 2 (Q K^T) V by one simdgroup, 16 rows, keys in blocks of 32, and the sums of S's rows in
// column 48; size: keys, columns of q.
template <bool asks>
kernel void chain(device half* q, device half* k, device half* v, device float* o,
                  constant int2& size) {
  constexpr auto mode = matmul2d_descriptor::mode::multiply_accumulate;
  constexpr matmul2d_descriptor first(16, 32, int(dynamic_extent), false, true, false, mode);
  constexpr matmul2d_descriptor second(16, 48, 32, false, false, false, mode);
  matmul2d<first, execution_simdgroup> scores;
  matmul2d<second, execution_simdgroup> output;
  threadgroup half stage[16 * 32];
  auto tq = tensor(q, dextents<int, 2>(size.y, 16));
  auto all_k = tensor(k, dextents<int, 2>(size.y, size.x));
  auto all_v = tensor(v, dextents<int, 2>(48, size.x));
  auto tp = tensor(stage, extents<int, 32, 16>());
  auto to = tensor(o, extents<int, 48, 16>(), array<int, 2>{1, 49});
  auto row_sums = tensor(o + 48, extents<int, 16>(), array<int, 1>{49});
  auto s = scores.template get_destination_cooperative_tensor<decltype(tq), decltype(tq), half>();
  auto sums =
      output.template get_destination_cooperative_tensor<decltype(tp), decltype(tp), float>();
  for (uint16_t i = 0; i < sums.get_capacity(); ++i) sums[i] = 0;
  matmul2d<first, execution_simdgroup> wide;
  auto exact =
      wide.template get_destination_cooperative_tensor<decltype(tq), decltype(tq), float>();
  auto line =
      wide.template get_row_reduction_destination_cooperative_tensor<decltype(tq), decltype(tq),
                                                                     float>();
  auto lines = line;
  for (uint16_t i = 0; i < line.get_capacity(); ++i) lines[i] = 0;
  for (int key = 0; key < size.x; key += 32) {
    auto tk = all_k.slice(0, key);
    auto tv = all_v.slice(0, key);
    for (uint16_t i = 0; i < s.get_capacity(); ++i) s[i] = 0;
    scores.run(tq, tk, s);
    for (int twice = 0; twice < 2; ++twice) {
      if (!asks || output.template is_compatible_as_left_input<half, half, float>(s)) {
        auto p = output.template get_left_input_cooperative_tensor<half, half, float>(s);
        output.run(p, tv, sums);
      } else {
        s.store(tp);
        simdgroup_barrier(mem_flags::mem_threadgroup);
        output.run(tp, tv, sums);
        simdgroup_barrier(mem_flags::mem_threadgroup);
      }
      if (twice == 1) continue;
      for (uint16_t i = 0; i < exact.get_capacity(); ++i) exact[i] = 0;
      wide.run(tq, tk, exact);
      reduce_rows(exact, line);
      for (uint16_t i = 0; i < line.get_capacity(); ++i) lines[i] += line[i];
    }
  }
  sums.store(to);
  lines.store(row_sums);
}
template [[host_name("asks")]] [[kernel]] decltype(chain<true>) chain<true>;
template [[host_name("trusts")]] [[kernel]] decltype(chain<false>) chain<false>;
"""
)


def chain_errors(layout: str, kernel: str, seed: int | None = None) -> tuple[np.ndarray, bool]:
    library = metalsim.compile_shader(CHAIN, cooperative_layout=layout)
    generator = np.random.default_rng(0)
    q, k, v = (
        generator.integers(-3, 4, shape).astype(np.float16)
        for shape in ((16, 100), (75, 100), (75, 48))
    )
    out = np.full((16, 49), np.nan, np.float32)
    with metalsim.schedule(seed=seed):
        getattr(library, kernel)(
            q, k, v, out, np.array([75, 100], np.int32), threads=32, group_size=32
        )
    scores = q.astype(int) @ k.T.astype(int)
    exact = np.concatenate([2 * scores @ v.astype(int), scores.sum(axis=1, keepdims=True)], axis=1)
    return out, bool((out == exact).all())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_destination_becomes_the_next_input(layout: str) -> None:
    """Right everywhere for a kernel that asks; wrong where layouts differ for one that does not."""
    assert chain_errors(layout, "asks")[1]
    assert chain_errors(layout, "trusts")[1] == (layout not in ("random:1", "random:3"))


@pytest.mark.parametrize("seed", range(1, 9))
def test_any_order_of_lanes_gives_the_same_bits(seed: int) -> None:
    """Operations of several sizes follow one another while slow lanes still read results."""
    out, right = chain_errors("random:2", "asks", seed)
    assert right
    assert out.tobytes() == chain_errors("random:2", "asks", None)[0].tobytes()


HARD_CODED = (
    HEAD
    + """
// Doubles column 3 of a tile, with an M5's lane layout written down instead of asked for.
kernel void relies_on_apple10(device half* a, device half* b, device float* c,
                              uint lane [[thread_index_in_simdgroup]]) {
  auto ta = tensor(a, extents<int, 16, 16>());
  auto tb = tensor(b, extents<int, 32, 16>());
  auto tc = tensor(c, extents<int, 32, 16>());
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  auto sums = op.get_destination_cooperative_tensor<decltype(ta), decltype(tb), float>();
  op.run(ta, tb, sums);
  const short first_column = ((lane >> 2 & 2) | (lane & 1)) * 4;
  for (short i = 0; i < 16; ++i)
    if (first_column + (i & 3) + (i >> 3) * 16 == 3) sums[i] *= 2;
  sums.store(tc);
}
kernel void asks(device half* a, device half* b, device float* c) {
  auto ta = tensor(a, extents<int, 16, 16>());
  auto tb = tensor(b, extents<int, 32, 16>());
  auto tc = tensor(c, extents<int, 32, 16>());
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  auto sums = op.get_destination_cooperative_tensor<decltype(ta), decltype(tb), float>();
  op.run(ta, tb, sums);
  for (short i = 0; i < sums.get_capacity(); ++i)
    if (sums.is_valid_element(i) && sums.get_multidimensional_index(i)[0] == 3) sums[i] *= 2;
  sums.store(tc);
}
"""
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kernel_that_relies_on_one_layout_goes_wrong_in_others(layout: str) -> None:
    library = metalsim.compile_shader(HARD_CODED, cooperative_layout=layout)
    a, b = np.ones((16, 16), np.float16), np.ones((16, 32), np.float16)
    expected = np.full((16, 32), 16, np.float32)
    expected[:, 3] *= 2
    for kernel in ("asks", "relies_on_apple10"):
        c = np.zeros((16, 32), np.float32)
        getattr(library, kernel)(a, b, c, threads=32, group_size=32)
        assert (c == expected).all() == (kernel == "asks" or layout == "apple10"), kernel


def test_the_environment_chooses_the_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    outs = [np.zeros(4096, np.int32) for _ in range(3)]
    monkeypatch.setenv("METALSIM_COOPERATIVE_LAYOUT", "older")
    metalsim.compile_shader(PLACES).nn(*outs, threads=32, group_size=32)
    assert places(outs[0], 32)[0, 2].tolist() == [8, 0]
    metalsim.compile_shader(PLACES, cooperative_layout="apple10").nn(
        *outs, threads=32, group_size=32
    )
    assert places(outs[0], 32)[0, 2].tolist() == [2, 0]


@pytest.mark.parametrize("text", ["apple9", "random", "random:-1", "random:x", "older:3"])
def test_unknown_layouts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'must be "apple10", "older" or "random:SEED"'):
        metalsim.compile_shader("kernel void f(device int* x) {}", cooperative_layout=text)
