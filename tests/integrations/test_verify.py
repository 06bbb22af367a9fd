"""`flashmetal verify` on the simulator: right kernels, and one that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import metalsim
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.tools.cli import main
from flashmetal.tools.verify import VERIFIED, cases

ONE = ["verify", "--device", "cpu", "--dtype", "float16", "--kernel", "simdgroup"]


def test_right_kernels_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--kernel", "decode", "--kernel", "append", "--output-dir", str(tmp_path))
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", Gpu.named("M1"))):
        assert main([*ONE, *more]) == 0
    assert "1 right" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["chip"] == "M1"
    assert [(x["kernel"], x["wrong"]) for x in record["results"]] == [
        ("simdgroup", ""),
        ("decode", ""),
        ("append", ""),
    ]


def test_a_wrong_kernel_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def broken(source: str) -> Any:
        return metalsim.compile_shader(source.replace("M_LN2_F;", "M_LN2_F * 1.01f;"))

    with metal_runtime(Runtime(broken, "cpu", Gpu.named("M1"))):
        assert main(ONE) == 1
    out = capsys.readouterr().out
    assert "1 wrong" in out
    assert "simdgroup float16 causal: AssertionError: lse is wrong at" in out


def test_without_a_runtime_there_is_nothing_to_verify(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ONE) == 1
    assert "No Metal runtime serves cpu tensors" in capsys.readouterr().out


@pytest.mark.long
def test_every_case_is_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", Gpu.named("M5"))):
        main(["verify", "--full", "--device", "cpu", "--dtype", "float16"])
    (path,) = tmp_path.glob("flashmetal-*-m5-*.json")
    results = json.loads(path.read_text())["results"]
    assert [x for x in results if x["wrong"]] == []
    ran = [(x["kernel"], x["case"]) for x in results]
    assert ran == [case[:3:2] for case in cases(VERIFIED, ("float16",), full=True)]
