"""The command ``flashmetal bench`` times what computes the same, and says what it left out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from flashmetal import cli
from flashmetal.bench.contestants import Call
from flashmetal.bench.measure import calls_of
from flashmetal.bench.workloads import Workload, workloads
from flashmetal.reference import attention_reference
from flashmetal.testing import error_budget

SMALL = dict(batch=2, seqlen_q=24, seqlen_k=40, heads_q=4, heads_k=2, head_dim=16, head_dim_v=16)
CASES = [
    Workload("full", **SMALL, dtype="float32"),
    Workload("causal", **SMALL, dtype="float32", window_right=0),
    Workload("window", **SMALL, dtype="float32", window_left=5, window_right=0, softcap=2.0),
    Workload("sinks", **SMALL, dtype="float32", sinks=True, alibi=True),
    Workload("packed", **SMALL, dtype="float32", lengths_q=[7, 24], lengths_k=[40, 9]),
]


@pytest.mark.parametrize("workload", CASES, ids=lambda workload: workload.name)
def test_all_contestants_compute_the_same(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    def not_compiled(function: Call, **options: object) -> Call:
        return function  # what is compiled is torch's own; the masks and scores are ours

    monkeypatch.setattr(torch, "compile", not_compiled)
    problem, inputs = workload.build("cpu")
    exact = attention_reference(problem, inputs, compute_dtype=torch.float64)[0]
    budget = error_budget(attention_reference(problem, inputs)[0], exact)
    calls = calls_of(problem, inputs, ["eager", "sdpa", "flex"], most_gb=1.0)
    for name, call in calls.items():
        if isinstance(call, str):
            assert name in ("sdpa", "flex")
            assert workload.sinks or workload.softcap
        else:
            assert (call()[0] - exact).abs().max() <= budget, name


def test_scores_past_the_limit_are_not_made() -> None:
    assert "--max-gb" in str(calls_of(*CASES[0].build("cpu"), ["eager"], 1e-9)["eager"])


def test_workloads_have_names_of_their_own_and_whole_groups_of_heads() -> None:
    known = workloads([])
    assert len({workload.name for workload in known}) == len(known) > 100
    assert all(workload.heads_q % workload.heads_k == 0 for workload in known)


def test_a_table_a_csv_and_the_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "bench.csv"
    shape = ["--seqlen", "64", "--dtype", "float32", "--softcap", "5", "--repeats", "1"]
    options = [*shape, "--device", "cpu", "--against", "sdpa", "--memory", "64"]
    assert cli.main(["bench", *options, "--csv", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "SDPA has no softcap" in shown
    assert "peak MB" in shown
    ours, sdpa, memory = csv.DictReader(table.read_text().splitlines())
    assert float(ours["median_ms"]) > 0
    assert (sdpa["contestant"], sdpa["median_ms"]) == ("sdpa", "")
    assert (memory["contestant"], memory["seqlen"]) == ("flashmetal", "64")
    assert int(memory["peak_bytes"]) >= 0


def test_wrong_options_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "no such model"]) == 2
    assert "no workload has 'no such model'" in capsys.readouterr().err
    assert cli.main(["bench", "--csv", "/no/such/folder/x.csv"]) == 2
    assert cli.main(["bench", "--list", "gpt-oss"]) == 0
    assert "gpt-oss-20b: prefill, full" in capsys.readouterr().out
