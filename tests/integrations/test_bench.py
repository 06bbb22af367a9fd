"""The command ``flashmetal bench`` times what computes the same, and says what it left out."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch

from flashmetal.reference import attention_reference
from flashmetal.testing import error_budget
from flashmetal.tools import cli
from flashmetal.tools.bench import measure as measuring
from flashmetal.tools.bench.contestants import Call, Padded
from flashmetal.tools.bench.measure import Options, contest, measure
from flashmetal.tools.bench.workloads import Workload, workloads

SMALL = dict(batch=2, seqlen_q=24, seqlen_k=40, heads_q=4, heads_k=2, head_dim=16, head_dim_v=16)
CASES = [
    Workload("full", **SMALL, dtype="float32"),
    Workload("causal", **SMALL, dtype="float32", window_right=0),
    Workload("window", **SMALL, dtype="float32", window_left=5, window_right=0, softcap=2.0),
    Workload("sinks", **SMALL, dtype="float32", sinks=True, alibi=True),
    Workload("packed", **SMALL, dtype="float32", lengths_q=[7, 24], lengths_k=[40, 9]),
]


RIVALS = ("eager", "sdpa", "flex")
FORWARD = Options("cpu", RIVALS, most_gb=1.0, repeats=1)
TRAINING = FORWARD._replace(training=True)


@pytest.fixture
def _not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is compiled is torch's own; the masks and scores are ours."""
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)


@pytest.mark.usefixtures("_not_compiled")
@pytest.mark.parametrize("workload", CASES, ids=lambda workload: workload.name)
def test_all_contestants_compute_the_same(workload: Workload) -> None:
    field = contest(workload, FORWARD)
    problem, inputs = field.problem, field.inputs
    exact = attention_reference(problem, inputs, compute_dtype=torch.float64)[0]
    budget = error_budget(attention_reference(problem, inputs)[0], exact)
    for name, call in field.calls.items():
        if isinstance(call, str):
            assert name in ("sdpa", "flex")
            assert workload.sinks or workload.softcap
        else:
            assert (call()[0] - exact).abs().max() <= budget, name
            assert field.judge(call()).right


@pytest.mark.parametrize("workload", CASES, ids=lambda workload: workload.name)
def test_all_contestants_have_the_same_gradients(workload: Workload) -> None:
    field = contest(workload, TRAINING._replace(rivals=("eager", "sdpa")))
    for call in field.calls.values():
        if not isinstance(call, str):
            o, lse, *grads = call()
            assert field.judge((o, lse, *grads)).right
            for index, grad in enumerate(grads):
                wrong = [*grads]
                wrong[index] = grad.clone()
                wrong[index][..., -1] += 0.1
                assert not field.judge((o, lse, *wrong)).right


LONG = SMALL | {"seqlen_q": 300, "seqlen_k": 310}
CHECKED: dict[str, tuple[Workload, list[int]]] = {
    "full": (Workload("", **LONG, dtype="float32"), [0, 149, 299]),
    "causal": (Workload("", **LONG, dtype="float32", window_right=0, alibi=True), [0, 149, 299]),
    "window": (Workload("", **LONG, dtype="float32", window_left=9, window_right=4), [299]),
    "bias": (Workload("", **LONG, dtype="float32", bias=True, softcap=3.0), [0, 149, 299]),
    "packed": (
        Workload("", **LONG, dtype="float32", window_right=0, lengths_q=[7, 300, 20]),
        [7, 156, 306],
    ),
}


@pytest.mark.parametrize("name", CHECKED)
def test_a_wrong_row_is_seen(name: str) -> None:
    workload, rows = CHECKED[name]
    field = contest(workload, FORWARD._replace(rivals=()))
    call = field.calls["flashmetal"]
    assert not isinstance(call, str)
    o, lse = call()
    assert field.judge((o, lse)).right
    for row in rows:
        for wrong_o, wrong_lse in ((1e-2, 0.0), (torch.nan, 0.0), (0.0, 1e-2)):
            changed = o.clone(), lse.clone()
            changed[0][..., row, -1, 0] += wrong_o
            changed[1][..., -1, row] += wrong_lse
            assert not field.judge(changed).right


def test_a_wrong_contestant_is_shown_and_not_timed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def halved(problem: object, padded: Padded, mask: object, inputs: object) -> Call:
        return lambda: (padded.pack(padded.q) / 2, None)

    monkeypatch.setattr(measuring, "eager_call", halved)
    ours, eager, sdpa = measure(CASES[0], FORWARD._replace(rivals=("eager", "sdpa")))
    assert ours.median_ms
    assert sdpa.median_ms
    assert eager.median_ms is None
    assert eager.error is not None
    assert eager.note.startswith(f"WRONG: error {eager.error:.1e}, allowed ")
    monkeypatch.setattr(measuring, "_flashmetal_call", lambda *call: lambda: (call[1].q, None))
    assert cli.main(["bench", "--device", "cpu", "--against", "--seqlen", "40"]) == 1
    assert "WRONG" in capsys.readouterr().out


def test_scores_past_the_limit_are_not_made() -> None:
    field = contest(CASES[0], FORWARD._replace(rivals=("eager",), most_gb=1e-9))
    assert "--max-gb" in str(field.calls["eager"])


def test_workloads_have_names_of_their_own_and_whole_groups_of_heads() -> None:
    known = workloads([])
    assert len({workload.name for workload in known}) == len(known)
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


def test_training_is_timed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "bench.csv"
    options = ["--seqlen", "40", "--dtype", "float32", "--repeats", "1", "--device", "cpu"]
    options += ["--training", "--against", "--memory", "40", "--csv", str(table)]
    options += ["--plot", str(tmp_path / "bench.svg")]
    assert cli.main(["bench", *options]) == 0
    assert "forward + backward, median" in capsys.readouterr().out
    ours, memory = csv.DictReader(table.read_text().splitlines())
    assert ours["note"] == "stock, gradients by stock"
    assert "forward + backward" in (tmp_path / "bench.svg").read_text()
    assert float(ours["median_ms"]) > 0
    assert int(memory["peak_bytes"]) >= 0


def test_wrong_options_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "no such model"]) == 2
    assert "no workload has 'no such model'" in capsys.readouterr().err
    assert cli.main(["bench", "--csv", "/no/such/folder/x.csv"]) == 2
    assert cli.main(["bench", "--list", "gpt-oss"]) == 0
    assert "gpt-oss-20b: prefill, full" in capsys.readouterr().out
