"""compute-sanitizer's reports, as recorded on an H200 (2025.3.1), read back; and the command."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from metalsim.cli import main
from metalsim.cuda.sanitizer import Hazard, Side, parse, sanitize

RACES = """\
========= COMPUTE-SANITIZER
========= Error: Potential RAW hazard detected at __shared__ 0x47c in block (2,0,0) :
=========     Write Thread (31,0,0) at metalsim_entry_0+0x2f20 in program_source:5
=========     Read Thread (34,0,0) at metalsim_entry_0+0x2f30 in program_source:6
=========     Current Value : 31
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: _call in driver.py:83
=========
========= Error: Potential RAW hazard detected at __shared__ 0x47d in block (2,0,0) :
=========     Write Thread (31,0,0) at metalsim_entry_0+0x2f20 in program_source:5
=========     Read Thread (34,0,0) at metalsim_entry_0+0x2f30 in program_source:6
=========     Current Value : 50
=========
========= Error: Potential RAW hazard detected at __shared__ 0x480 in block (2,0,0) :
=========     Write Thread (30,0,0) at metalsim_entry_0+0x2f20 in program_source:5
=========     Read Thread (33,0,0) at metalsim_entry_0+0x2f30 in program_source:6
=========     Current Value : 50
=========
========= Warning: (Warp Level Programming) Potential RAW hazard detected at __shared__ 0x484 \
in block (0,0,0) :
=========     Write Thread (33,0,0) at metalsim_entry_1+0x2f20 in attend.h:10
=========     Read Thread (32,0,0) at metalsim_entry_1+0x2f30 in attend.h:11
=========     Current Value : 219
=========
========= RACECHECK SUMMARY: 4 hazards displayed (3 errors, 1 warnings)
"""
BOUNDS = """\
========= COMPUTE-SANITIZER
========= Invalid __shared__ read of size 4 bytes
=========     at metalsim_entry_3+0x2f20 in program_source:20
=========     by thread (2,0,0) in block (7,0,0)
=========     Access to 0x13ca0 is out of bounds
=========     Saved host backtrace up to driver entry point at kernel launch time
=========         Host Frame: _call in driver.py:83
=========
========= Target application returned an error
========= ERROR SUMMARY: 1 error
"""


def test_races_are_read_with_metals_threads() -> None:
    """Lanes 1, 2, 31 and 30 of a warp are 1, 8, 31 and 30 - of - Metal's."""
    first, second = parse("racecheck", RACES)
    sides = (
        Side("write", "program_source", 5, 31, 2),
        Side("read", "program_source", 6, 32 + 8, 2),
    )
    assert first == Hazard("race", "Potential RAW hazard detected", sides, 2)
    assert second.message == "(Warp Level Programming) Potential RAW hazard detected"
    assert [side.thread for side in second.sides] == [33, 32]
    assert [side.line for side in second.sides] == [10, 11]
    assert "program_source:5: write by thread 31 of threadgroup 2" in str(first)


def test_bounds_are_read() -> None:
    side = Side("", "program_source", 20, 8, 7)
    assert parse("memcheck", BOUNDS) == [
        Hazard("bounds", "Invalid __shared__ read of size 4 bytes", (side,), 1)
    ]


def test_a_clean_run_has_no_hazards() -> None:
    assert parse("racecheck", "========= COMPUTE-SANITIZER\n========= RACECHECK SUMMARY: 0\n") == []


def stand_in(directory: Path, output: str, status: int) -> None:
    """A compute-sanitizer that says `output`, whatever it is asked."""
    path = directory / "compute-sanitizer"
    path.write_text(f"#!{sys.executable}\nimport sys\nprint({output!r})\nsys.exit({status})\n")
    path.chmod(0o755)


def test_a_launch_that_fails_otherwise_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("metalsim.cuda.sanitizer._TOOLKIT", str(tmp_path / "none"))
    with pytest.raises(RuntimeError, match="needs compute-sanitizer"):
        sanitize(["x"])
    stand_in(tmp_path, "========= ERROR SUMMARY: 0 errors", 1)
    with pytest.raises(RuntimeError, match="memcheck: the launch failed"):
        sanitize(["x"], ["bounds"])
    stand_in(tmp_path, BOUNDS, 1)
    assert len(sanitize(["x"], ["bounds", "alignment"])) == 1


def test_the_command_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "k.metal"
    path.write_text("kernel void k(device float* x) { *x = 1; }")
    monkeypatch.setattr("metalsim.cuda.sanitizer.sanitize", lambda *_: parse("memcheck", BOUNDS))
    monkeypatch.setattr("metalsim.cli.compile_shader", lambda *_, **__: _Library())
    words = ["check", str(path), "--engine", "cuda", "--buffers", "zeros:float:4", "--threads", "1"]
    assert main(words) == 1
    assert f"{path}:20: thread 8 of threadgroup 7" in capsys.readouterr().out
    assert main([*words, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["findings"][0]["sides"][0]["line"] == 20
    assert main([*words, "--only", "uninitialized"]) == 2
    assert "on a GPU there are races, bounds" in capsys.readouterr().err


class _Kernel:
    name = "k"


class _Library:
    k = _Kernel()

    def __dir__(self) -> list[str]:
        return ["k"]
