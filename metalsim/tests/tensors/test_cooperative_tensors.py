"""Cooperative tensors: load and store, reductions, and the handing on of a destination as the next
input."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import metalsim

Tensors = Callable[..., metalsim.ShaderLibrary]

LAYOUTS = ["apple10", "older", "random:0", "random:1", "random:2", "random:3"]

ACCESS = """
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


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("columns", "rows"), [(32, 16), (21, 5), (40, 20)])
def test_load_get_set_iterate_store(
    tensor_library: Tensors, columns: int, rows: int, layout: str
) -> None:
    library = tensor_library(ACCESS, cooperative_layout=layout, check=True)
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
def test_reductions(tensor_library: Tensors, layout: str, dtype: type[np.floating]) -> None:
    library = tensor_library(ACCESS, cooperative_layout=layout)
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


CHAIN = """
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


def chain_errors(
    tensor_library: Tensors, layout: str, kernel: str, seed: int | None = None
) -> tuple[np.ndarray, bool]:
    library = tensor_library(CHAIN, cooperative_layout=layout)
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
def test_a_destination_becomes_the_next_input(tensor_library: Tensors, layout: str) -> None:
    """Right everywhere for a kernel that asks; wrong where layouts differ for one that does not."""
    assert chain_errors(tensor_library, layout, "asks")[1]
    assert chain_errors(tensor_library, layout, "trusts")[1] == (
        layout not in ("random:1", "random:3")
    )


@pytest.mark.parametrize("seed", range(1, 9))
def test_any_order_of_lanes_gives_the_same_bits(tensor_library: Tensors, seed: int) -> None:
    """Operations of several sizes follow one another while slow lanes still read results."""
    out, right = chain_errors(tensor_library, "random:2", "asks", seed)
    assert right
    assert out.tobytes() == chain_errors(tensor_library, "random:2", "asks", None)[0].tobytes()


RIGHT = """
// C = A (A B) with A B handed on as the right input, or through memory where it cannot be.
kernel void squared(device half* a, device half* b, device float* c, device bool* direct) {
  TENSORS(a, b, c);
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_simdgroup> op;
  auto first = op.get_destination_cooperative_tensor<decltype(ta), decltype(tb), half>();
  op.run(ta, tb, first);
  direct[0] = op.is_compatible_as_right_input<half, half, float>(first);
  direct[1] = op.is_compatible_as_left_input<half, half, float>(first);
  if (direct[0]) {
    auto right = op.get_right_input_cooperative_tensor<half, half, float>(first);
    op.run(ta, right, tc);
  } else {
    threadgroup half stage[16 * 32];
    auto staged = tensor(stage, extents<int, 32, 16>());
    first.store(staged);
    simdgroup_barrier(mem_flags::mem_threadgroup);
    op.run(ta, staged, tc);
  }
}
kernel void alone(device half* a, device half* b, device float* c) {
  TENSORS(a, b, c);
  matmul2d<matmul2d_descriptor(16, 32, 16), execution_thread> op;
  auto sums = op.get_destination_cooperative_tensor<decltype(ta), decltype(tb), float>();
  op.run(ta, tb, sums);
  sums.store(tc);
}
"""


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_destination_becomes_a_right_input(tensor_library: Tensors, layout: str) -> None:
    library = tensor_library(RIGHT, cooperative_layout=layout)
    generator = np.random.default_rng(0)
    a = generator.integers(-3, 4, (16, 16)).astype(np.float16)
    b = generator.integers(-3, 4, (16, 32)).astype(np.float16)
    c, direct = np.zeros((16, 32), np.float32), np.zeros(2, bool)
    library.squared(a, b, c, direct, threads=32, group_size=32)
    np.testing.assert_array_equal(c, a.astype(int) @ (a.astype(int) @ b.astype(int)))
    assert direct.tolist() == [layout not in ("random:1", "random:3"), False]


def test_one_thread_holds_a_whole_destination(tensor_library: Tensors) -> None:
    a = np.eye(16, dtype=np.float16)
    b = np.arange(512, dtype=np.float16).reshape(16, 32)
    c = np.zeros((16, 32), np.float32)
    tensor_library(RIGHT).alone(a, b, c, threads=1)
    np.testing.assert_array_equal(c, b)
