"""The command that records on a Mac, run over metalsim; and every record of a Mac that is here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import metalsim
from metalsim.fidelity.__main__ import main
from metalsim.fidelity.corpus import launches
from metalsim.fidelity.record import differences, make_record, record_metalsim

RECORDED = Path(__file__).parents[2] / "docs" / "recorded"


def test_every_kernel_of_the_corpus_has_a_launch() -> None:
    sources = {launch.file: launch.source for launch in launches()}
    kernels = {(file, name) for file, text in sources.items() for name in dir(library(text))}
    assert kernels == {(launch.file, launch.kernel) for launch in launches()}


def library(source: str) -> metalsim.ShaderLibrary:
    return metalsim.compile_shader(source, check=True)


def test_a_record_through_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["record", "--on", "metalsim", "--output-dir", str(tmp_path)]) == 0
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    assert set(record) == {"date", "chip", "system", "device", "torch", "metalsim", "results"}
    assert len(record["results"]) == len(launches())
    capsys.readouterr()
    assert main(["compare", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > len(launches())
    assert all(line.endswith("equal") for line in lines[1:])


def test_the_corpus_has_no_findings() -> None:
    record = make_record("metalsim", library, lambda array: array)
    assert not [result["error"] for result in record["results"].values() if "error" in result]


def test_differences_are_counted_in_units_of_the_last_place() -> None:
    def compile_broken(source: str) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(source.replace("= precise::sqrt(x)", "= -precise::sqrt(x)"))

    record = record_metalsim()
    results = record["results"]
    broken = make_record("broken", compile_broken, lambda array: array)
    # The digest is of the corpus, not of what a compiler made of it.
    (found,) = [found for found in differences(record, broken) if found.different]
    assert (found.launch, found.buffer) == ("functions:roots", 0)
    assert 1000 <= found.different <= 1024
    assert found.units > 2**30
    results["functions:roots"]["digest"] = "of another corpus"
    assert not [found for found in differences(record, broken) if found.different]


def test_a_kernel_that_fails_is_recorded_as_such() -> None:
    def refuse(source: str) -> metalsim.ShaderLibrary:
        if "matrix_of_floats" in source:
            raise SyntaxError("no matrices here")
        return metalsim.compile_shader(source)

    record = make_record("mps", refuse, lambda array: array)
    failed = {name for name, result in record["results"].items() if "error" in result}
    assert failed == {f"simdgroups:{x.kernel}" for x in launches() if x.file == "simdgroups"}


def test_without_an_apple_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="no Apple GPU"):
        main(["record"])


def test_what_is_exact_is_as_recorded_on_each_mac() -> None:
    """The other kernels' differences are for the reader of `compare`."""
    own = record_metalsim()
    exact = ("contract:", "simdgroups:shuffles", "simdgroups:matrix_layout")
    records = [
        own,
        *(json.loads(path.read_text()) for path in sorted(RECORDED.glob("[0-9]*.json"))),
    ]
    for record in records:
        found = [each for each in differences(record, own) if each.launch.startswith(exact)]
        assert found
        assert not [each for each in found if each.different], (record["chip"], record["date"])
