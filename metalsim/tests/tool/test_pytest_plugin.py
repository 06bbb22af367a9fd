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
    result.stdout.fnmatch_lines(["*out of bounds: read of 4 bytes at byte 16 of buffer 0*"])


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


def test_without_seeds_a_test_runs_once(pytester: pytest.Pytester) -> None:
    result = run(pytester, "def test_once(compile_shader): launch(compile_shader, 'twice')")
    result.assert_outcomes(passed=1)
