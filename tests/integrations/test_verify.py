"""`flashmetal verify` on the simulator: right kernels, and one that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import metalsim
from flashmetal.cli import main
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.verify import cases, run

ONE = ["verify", "--device", "cpu", "--dtype", "float16", "--kernel", "simdgroup"]


def test_right_kernels_are_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", Gpu.named("M1"))):
        assert main([*ONE, "--kernel", "decode", "--output-dir", str(tmp_path)]) == 0
    assert "1 right" in capsys.readouterr().out
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert record["chip"] == "M1"
    assert [(x["kernel"], x["wrong"]) for x in record["results"]] == [
        ("simdgroup", ""),
        ("decode", ""),
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
def test_every_case_is_right() -> None:
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", Gpu.named("M5"))):
        kernels = ("tensor", "simdgroup", "scalar", "decode")
        wrong = {case[:3]: run(case, "cpu") for case in cases(kernels, ("float16",), full=True)}
    assert {case: verdict for case, verdict in wrong.items() if verdict} == {}
