"""A trace counts what was called, by whom it was served, and stays out of the way when off."""

from __future__ import annotations

import json
from pathlib import Path
from types import FunctionType

import pytest
import torch

from flashmetal import explain, flash_attn_func, ops
from flashmetal.settings import trace_target
from flashmetal.tools import cli
from flashmetal.tools.trace import Trace, features

from ..interpreter import python

SCRIPT = """
import sys
import torch
from flashmetal import flash_attn_func

q = torch.randn(1, 8, 4, 16)
flash_attn_func(q, q, q, causal=True)
flash_attn_func(q, q, q, causal=True)
print(sys.argv[1:], __name__)
sys.exit(3)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def test_the_command_runs_the_script_as_python_does(script: str, tmp_path: Path) -> None:
    found = tmp_path / "trace.json"
    done = python(
        "-m", "flashmetal.tools.cli", "trace", "--json", str(found), script, "--json", "a"
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout == "['--json', 'a'] __main__\n"
    (call,) = json.loads(found.read_text())["calls"]
    assert call["calls"] == 2
    assert call["seconds"] > 0
    # q, k, v and o of 8 rows, 4 heads of 16 floats, and lse.
    assert call["bytes"] == 2 * 4 * (4 * 8 * 4 * 16 + 8 * 4)
    assert (call["function"], call["features"]) == ("flash_attn_func", ["causal"])
    q = torch.empty(1, 8, 4, 16)
    expected = explain(q, q, q, causal=True).plan
    assert (call["engine"], call["why"]) == (expected.engine, expected.why)


def test_the_environment_asks_for_a_table_at_exit(script: str) -> None:
    done = python(script, "a", FLASHMETAL_TRACE="1")
    assert done.returncode == 3
    assert done.stdout == "['a'] __main__\n"
    assert "2 calls of attention" in done.stderr
    assert "causal" in done.stderr


def test_a_relative_path_is_one_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script may end in another folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLASHMETAL_TRACE", "trace.json")
    assert trace_target() == str(tmp_path / "trace.json")


def test_a_path_that_cannot_be_written_is_told_before_the_script_runs(
    script: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = "/no/such/folder/trace.json"
    monkeypatch.setenv("FLASHMETAL_TRACE", nowhere)
    with pytest.raises(ValueError, match="FLASHMETAL_TRACE must be a file in a folder that can"):
        trace_target()
    assert cli.main(["trace", "--json", nowhere, script]) == 2
    assert cli.main(["trace", nowhere]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert "no such file" in shown.err


def test_gradients_compiled_calls_and_forward_mode_are_counted() -> None:
    q = torch.randn(1, 8, 2, 16)
    w = q.clone().requires_grad_()
    compiled = torch.compile(lambda x: flash_attn_func(x, x, x, softcap=5.0), backend="eager")
    with Trace() as trace:
        flash_attn_func(w, w, w).sum().backward()
        compiled(q)
        compiled(q)
        torch.func.jvp(lambda x: flash_attn_func(x, x, x, causal=True), (q,), (q,))
    seen = {
        (kind.function, kind.engine, *features(kind.problem)): total.calls
        for kind, total in trace.totals.items()
    }
    assert seen.pop(("gradients", explain(w, w, w).plan.backward, "gradients")) == 1
    assert (
        seen.pop(("flash_attn_func", explain(q, q, q, softcap=5.0).plan.engine, "softcap 5")) == 2
    )
    assert seen.pop(("flash_attn_func", "reference", "causal", "gradients")) == 1
    assert list(seen.values()) == [1]  # the forward of the gradients


def test_a_call_that_fails_is_not_counted_and_raises_as_before() -> None:
    q = torch.randn(1, 8, 2, 16)
    with Trace() as trace, pytest.raises(NotImplementedError, match="impl='metal'"):
        flash_attn_func(q, q, q, impl="metal")
    assert not trace.totals


def test_nothing_of_it_is_left_when_it_is_off() -> None:
    before = [getattr(ops, name) for name in ("_run", "_eager", "_gradients")]
    with Trace():
        assert ops._run is not before[0]
    after = [getattr(ops, name) for name in ("_run", "_eager", "_gradients")]
    assert after == before
    assert all(isinstance(f, FunctionType) and f.__module__ == ops.__name__ for f in after)
    assert not any(hasattr(f, "__wrapped__") for f in after)
