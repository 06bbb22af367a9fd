"""The pytest plugin, as pytest finds it through its entry point, in sessions of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from metalsim.cache import cache_directory

pytest_plugins = "pytester"

PROGRAM = '''
import numpy as np
import pytest

SOURCE = """
kernel void shift(device float* x, uint i [[thread_position_in_grid]]) { x[i] = x[i + 1]; }
kernel void twice(device float* x, uint i [[thread_position_in_grid]]) { x[i] *= 2; }
kernel void last(device uint* x, uint i [[thread_position_in_grid]]) { x[0] = i; }
"""

def launch(compile_shader, name, threads=4):
    x = np.ones(4, dtype=np.float32)
    getattr(compile_shader(SOURCE), name)(x, threads=threads)
    return x
'''


@pytest.fixture(scope="module")
def warm_cache() -> Path:
    """This user's cache, looked up before pytester moves the home directory."""
    return cache_directory()


@pytest.fixture(autouse=True)
def keep_cache(warm_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METALSIM_CACHE_DIR", str(warm_cache))


def run(pytester: pytest.Pytester, tests: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(PROGRAM + tests)
    # The plugins of the outer session stay out; the ones under test and pytest's own come in.
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:xdist", *options)


def test_a_finding_fails_the_test_even_if_caught(pytester: pytest.Pytester) -> None:
    result = run(
        pytester,
        """
def test_right(compile_shader):
    assert launch(compile_shader, "twice").tolist() == [2.0] * 4
    assert compile_shader(SOURCE).twice.max_threads_per_threadgroup == 1024
    assert dir(compile_shader(SOURCE)) == ["last", "shift", "twice"]

def test_wrong(compile_shader):
    launch(compile_shader, "shift")

def test_hidden(compile_shader):
    try:
        launch(compile_shader, "shift")
    except Exception:
        pass

def test_check_cannot_be_switched_off(compile_shader):
    compile_shader(SOURCE, check=False).shift(np.ones(4, dtype=np.float32))

def test_what_is_no_finding(compile_shader):
    with pytest.raises(SyntaxError):
        compile_shader("kernel void f(")
    with pytest.raises(ValueError, match="empty"):
        launch(compile_shader, "twice", threads=0)
""",
    )
    result.assert_outcomes(passed=2, failed=3)
    result.stdout.fnmatch_lines(
        [
            "*metalsim: program_source:2: kernel shift: race: *",
            "*program_source:2: kernel shift: out of bounds: read of 4 bytes at byte 16 *",
            "*    2 | kernel void shift(*",
        ]
    )


def test_seeds(pytester: pytest.Pytester) -> None:
    """The fixture's tests run once a seed, the others once; a kernel that depends on the order of
    its threads shows."""
    tests = """
from metalsim.schedule import current_schedule

def test_order(compile_shader, request):
    name = request.node.name
    assert name == f"test_order[seed{current_schedule().seed}]"

def test_last(compile_shader):
    x = np.zeros(1, dtype=np.uint32)
    compile_shader(SOURCE).last(x, threads=32, group_size=1)
    assert x[0] == 31

def test_other():
    assert current_schedule().seed == 0
"""
    result = run(pytester, tests, "--metalsim-seeds", "4", "-k", "not last")
    result.assert_outcomes(passed=5, deselected=4)
    result = run(pytester, tests, "--metalsim-seeds", "4", "-k", "last")
    assert result.parseoutcomes()["failed"] >= 3


def test_layouts(pytester: pytest.Pytester) -> None:
    """A kernel that knows the layout of an M5 by heart shows."""
    tests = """
TENSORS = '''
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;
kernel void first_row(device float* x, device float* y, uint lane [[thread_index_in_simdgroup]]) {
  auto from = tensor(x, extents<int, 16, 16>());
  auto to = tensor(y, extents<int, 16, 16>());
  matmul2d<matmul2d_descriptor(16, 16, 16), execution_simdgroup> op;
  auto ct = op.get_destination_cooperative_tensor<decltype(from), decltype(from), float>();
  ct.load(from);
  if (lane == 0)
    for (int i = 0; i < 4; ++i) ct[i] = 0;
  ct.store(to);
}
'''

def test_it(compile_shader):
    x, y = np.ones((16, 16), np.float32), np.zeros((16, 16), np.float32)
    compile_shader(TENSORS).first_row(x, y, threads=32, group_size=32)
    assert (y[0, :4] == 0).all() and y.sum() == 252

def test_other():
    pass
"""
    result = run(pytester, tests, "--metalsim-layouts", "apple10,older,random:1", "-v")
    result.assert_outcomes(passed=2, failed=2)
    result.stdout.fnmatch_lines(["*test_it[[]apple10[]] PASSED*", "*test_it[[]random:1[]] FAILED*"])


def test_without_seeds_a_test_runs_once(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_once(compile_shader): launch(compile_shader, 'twice')")
    result.assert_outcomes(passed=1)
