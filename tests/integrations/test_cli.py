"""The command line says what the plan says."""

from __future__ import annotations

import pytest
import torch

from flashmetal.tools import cli

from ..interpreter import python


def test_doctor_lists_every_engine_and_this_machine() -> None:
    done = python("-m", "flashmetal.tools.cli", "doctor")
    assert done.returncode == 0, done.stderr
    for word in ("metal", "portable", "stock", "reference", torch.__version__):
        assert word in done.stdout


def test_explain_names_the_engine_that_serves(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--device", "cpu", "--grad"]) == 0
    table = capsys.readouterr().out
    row = next(line for line in table.splitlines() if "serves" in line)
    assert "stock" in row
    assert any("stock" in line for line in table.splitlines() if "gradients" in line)


def test_an_engine_that_cannot_serve_gives_its_reason(capsys: pytest.CaptureFixture[str]) -> None:
    """No Apple GPU stands behind tensors on the CPU."""
    assert cli.main(["explain", "--device", "cpu", "--impl", "metal"]) == 1
    assert "impl='metal' cannot serve this call" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["explain --seqlen -3", "bench --heads 0", "tune --repeats x"])
def test_a_count_is_at_least_one(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words.split())
    assert "must be a whole number of at least 1" in capsys.readouterr().err


def test_a_wrong_shape_is_refused_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["explain", "--heads", "8", "--kv-heads", "3"]) == 1
    assert "8" in capsys.readouterr().err
