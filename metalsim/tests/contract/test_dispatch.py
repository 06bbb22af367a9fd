"""Grids, groups, kernel objects and libraries, as torch.mps.compile_shader has them."""

from __future__ import annotations

import pytest
import torch

import metalsim

SOURCE = """
#include <metal_stdlib>
using namespace metal;
kernel void where(device uint* out [[buffer(0)]], uint3 at [[thread_position_in_grid]],
                  uint3 grid [[threads_per_grid]], uint3 group [[dispatch_threads_per_threadgroup]],
                  uint3 actual [[threads_per_threadgroup]]) {
  const uint i = (at.z * grid.y + at.y) * grid.x + at.x;
  out[4 * i] = group.x;
  out[4 * i + 1] = group.y;
  out[4 * i + 2] = group.z;
  out[4 * i + 3] = actual.x;
}
[[max_total_threads_per_threadgroup(64)]] kernel void small(device int* out) {
  threadgroup int x[10];
  x[0] = 1;
  out[0] = x[0];
}
template <typename T>
kernel void fill(device T* out, constant T& value, uint i [[thread_position_in_grid]]) {
  out[i] = value;
}
template [[host_name("fill_float")]] [[kernel]] decltype(fill<float>) fill<float>;
template [[host_name("fill-int")]] [[kernel]] decltype(fill<int>) fill<int>;
namespace inner { kernel void nested(device int* out) { out[0] = 7; } }
kernel void nothing() {}
constant constexpr uint width = 8;
[[required_threads_per_threadgroup(width, 4, 1)]]
kernel void tiled(device uint* out, uint3 group [[threads_per_threadgroup]],
                  uint3 grid [[threads_per_grid]], uint3 at [[thread_position_in_grid]]) {
  out[at.y * grid.x + at.x] = 100 * group.x + group.y;
}
[[required_threads_per_threadgroup(64, 1, 1)]]
kernel void lines(device uint* out, uint n [[threads_per_threadgroup]],
                  uint i [[thread_position_in_grid]]) {
  out[i] = n;
}
"""

# Of `mixed` a launch reaches one variable alone, and not the first.
MEMORY = """
#include <metal_stdlib>
using namespace metal;
namespace inner {
kernel void mixed(device float* out) {
  if (out[0] == 1) {
    threadgroup float x[10], y[3];
    x[0] = y[0] = 1;
  }
  threadgroup char z;
  z = 1;
  if (out[0] == z) {
    threadgroup long w[2];
    w[0] = 1;
  }
}
}
template <typename T, int N, typename = enable_if_t<(N > 2)>>
kernel void tiles(device T* out) {
  constexpr int rows = N * 2;
  threadgroup T x[rows][2];
  x[0][0] = 1;
  out[0] = x[0][0];
}
template [[host_name("tiles_float")]] kernel void tiles<float, 4>(device float*);
template [[host_name("tiles_half")]] kernel void tiles<half, 8>(device half*);
kernel void none(device float* out) { out[0] = 1; }
"""


@pytest.fixture(scope="module")
def library() -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(SOURCE)


def groups(library, count: int, **options: object) -> torch.Tensor:
    out = torch.full((count, 4), -1, dtype=torch.int32)
    library.where(out, **options)
    return out


def test_threads_default_to_the_elements_of_the_first_tensor(library) -> None:
    out = torch.full((7,), -1.0)
    library.fill_float(out, 2.0)
    assert out.tolist() == [2.0] * 7


@pytest.mark.parametrize(
    ("threads", "group_size", "expected"),
    [
        (7, None, [7, 1, 1]),
        ([7], None, [7, 1, 1]),
        (2000, None, [1024, 1, 1]),
        ((4, 3), None, [1024, 1, 1]),
        ((4, 3, 2), None, [1024, 1, 1]),
        ((4, 3, 2), (2, 3, 1), [2, 3, 1]),
        (100, 32, [32, 1, 1]),
        (100, (1024,), [1024, 1, 1]),
    ],
)
def test_group_size(library, threads: object, group_size: object, expected: list[int]) -> None:
    sizes = (threads,) if isinstance(threads, int) else threads
    count = torch.tensor(sizes).prod().item()
    out = groups(library, count, threads=threads, group_size=group_size)
    assert out[:, :3].unique(dim=0).tolist() == [expected]


def test_groups_at_the_edge_are_smaller(library) -> None:
    out = groups(library, 100, threads=100, group_size=32)
    assert out[:, 3].tolist() == [32] * 96 + [4] * 4


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"threads": 8, "group_size": 1025}, ValueError, "exceeds 1024 limit"),
        ({"threads": (8, 8), "group_size": (64, 17)}, ValueError, "1088 threads"),
        ({"threads": 0}, ValueError, "is empty"),
        ({"threads": 8, "group_size": 0}, ValueError, "is empty"),
        ({"threads": (8, 8), "group_size": 8}, RuntimeError, "2 dimensions and group_size 1"),
        ({"threads": ()}, RuntimeError, "one to three"),
        ({"threads": (1, 1, 1, 1)}, RuntimeError, "one to three"),
        ({"threads": -1}, RuntimeError, "one to three"),
        ({"threads": 2.0}, RuntimeError, "must be an int or a list"),
        ({"threads": [2.0]}, RuntimeError, "must be an int or a list"),
        ({"threads": 1 << 32}, RuntimeError, "2\\*\\*32"),
    ],
)
def test_refused_grids(library, options: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=f"^where: .*{message}"):
        groups(library, 8, **options)


def test_threads_are_needed_where_there_is_no_tensor(library) -> None:
    with pytest.raises(RuntimeError, match="Number of threads is undefined"):
        library.nothing()
    library.nothing(threads=3)


def test_a_limit_of_the_kernel_itself(library) -> None:
    assert library.small.max_threads_per_threadgroup == 64
    with pytest.raises(ValueError, match="exceeds 64 limit"):
        library.small(torch.zeros(1, dtype=torch.int32), threads=65, group_size=65)


def test_the_only_size_of_a_threadgroup(library) -> None:
    out = torch.zeros(128, dtype=torch.int32)
    library.lines(out)
    assert (out == 64).all()
    library.lines(out, threads=128, group_size=64)
    library.tiled(out, threads=(16, 8))
    assert (out == 804).all()
    library.tiled(out, threads=(16, 8, 1), group_size=(8, 4, 1))
    assert library.tiled.max_threads_per_threadgroup == 32
    assert library.tiled.required_threads_per_threadgroup == (8, 4, 1)
    assert library.where.required_threads_per_threadgroup == ()
    with pytest.raises(ValueError, match=r"lines: requires threadgroups of \[64, 1, 1\].*not \[16"):
        library.lines(out, threads=128, group_size=16)
    for sizes in ({"threads": 128}, {"threads": (16, 8), "group_size": (4, 8)}):
        with pytest.raises(ValueError, match=r"tiled: requires threadgroups of \[8, 4, 1\]"):
            library.tiled(out, **sizes)


def test_kernel_attributes(library) -> None:
    kernel = library.small
    assert kernel.max_threads_per_threadgroup == 64
    assert library.where.max_threads_per_threadgroup == 1024
    assert kernel.thread_execution_width == 32


@pytest.mark.parametrize("check", [False, True])
def test_threadgroup_memory_is_known_before_a_launch(compiler: str, check: bool) -> None:
    library = metalsim.compile_shader(MEMORY, check=check)
    sizes = {
        name: getattr(library, name).static_thread_group_memory_length for name in dir(library)
    }
    assert sizes == {"none": 0, "mixed": 52 + 4 + 16, "tiles_float": 64, "tiles_half": 64}
    library.mixed(torch.zeros(1))
    assert library.mixed.static_thread_group_memory_length == 72


def test_names(library) -> None:
    assert set(dir(library)) == {
        *("where", "small", "fill_float", "fill-int", "nested", "nothing", "tiled", "lines")
    }
    assert library.small is library.small
    out = torch.zeros(3, dtype=torch.int32)
    getattr(library, "fill-int")(out, 5)
    assert out.tolist() == [5, 5, 5]
    library.nested(out, threads=1)
    assert out.tolist() == [7, 5, 5]


def test_an_unknown_name(library) -> None:
    with pytest.raises(
        RuntimeError, match="no kernel is named 'gone'; this library has where, small"
    ):
        _ = library.gone
    assert not hasattr(library, "gone")


def test_counters_belong_to_checking_builds(library) -> None:
    out = torch.zeros(32)
    library.fill_float(out, 1.0)
    assert library.fill_float.counters == {}
    checked = metalsim.compile_shader(SOURCE, check=True)
    checked.fill_float(out, 1.0)
    assert checked.fill_float.counters["device_bytes_stored"] == 128


def test_check_reads_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSIM_CHECK", "1")
    checked = metalsim.compile_shader(SOURCE)
    checked.fill_float(torch.zeros(1), 1.0)
    assert checked.fill_float.counters
    monkeypatch.setenv("METALSIM_CHECK", "maybe")
    with pytest.raises(ValueError, match="METALSIM_CHECK must be 0, 1 or names of races"):
        metalsim.compile_shader(SOURCE)


def test_schedule_nests_and_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSIM_SEED", "5")
    with metalsim.schedule(workers=1) as outer:
        assert outer == (5, 1)
        with metalsim.schedule(seed=9) as inner:
            assert inner == (9, 1)
    with pytest.raises(ValueError, match="seed must be from 0"), metalsim.schedule(seed=-1):
        pass
    monkeypatch.setenv("METALSIM_SEED", "x")
    with (
        pytest.raises(ValueError, match="METALSIM_SEED must be a whole number"),
        metalsim.schedule(),
    ):
        pass


def test_seeds_change_the_order_and_repeat_it() -> None:
    library = metalsim.compile_shader(
        "kernel void order(device metal::atomic_uint* next, device uint* out,\n"
        "  uint i [[thread_position_in_grid]]) {\n"
        "  out[metal::atomic_fetch_add_explicit(next, 1u, metal::memory_order_relaxed)] = i;\n}"
    )

    def order(seed: int) -> list[int]:
        out = torch.full((256,), -1, dtype=torch.int32)
        with metalsim.schedule(seed=seed, workers=1):
            library.order(torch.zeros(1, dtype=torch.int32), out, threads=256, group_size=64)
        assert sorted(out.tolist()) == list(range(256))
        return out.tolist()

    assert order(0) == order(0)
    assert order(3) == order(3)
    assert len({tuple(order(seed)) for seed in range(4)}) == 4
