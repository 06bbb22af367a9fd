"""`metalsim run` and `metalsim profile`, most through `main` in this process."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from metalsim.cli import main

SOURCE = """#include <metal_stdlib>
using namespace metal;

kernel void scale(const device float* x [[buffer(0)]], device float* y [[buffer(1)]],
                  constant uint& count [[buffer(2)]], constant float& by [[buffer(3)]],
                  uint i [[thread_position_in_grid]]) {
  if (i < count) y[i] = by * x[i];
}

kernel void too_far(device float* x, uint i [[thread_position_in_grid]]) { x[i + 1] = 1; }

kernel void diverging(device float* x, uint i [[thread_position_in_grid]]) {
  if (i < 3)
    threadgroup_barrier(mem_flags::mem_threadgroup);
  x[i] = simd_sum(x[i]);
}

kernel void coordinates(device uint* x, uint2 at [[thread_position_in_grid]],
                        uint2 size [[threads_per_threadgroup]]) {
  x[at.y * 4 + at.x] = size.x * 10 + size.y;
}
"""
CONSTANT = """
constant int factor [[function_constant(0)]];
kernel void scale(device float* x, uint i [[thread_position_in_grid]]) { x[i] *= factor; }
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Path("k.metal").write_text(SOURCE)
    return "k.metal"


def run(command: str) -> int:
    return main(command.split())


def test_buffers_go_in_and_come_out(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    x = np.arange(6, dtype=np.float64).reshape(2, 3)
    np.save("x.npy", x)
    buffers = "--buffers x.npy:float32 zeros:float32:2x3 uint32:5 0.5"
    assert run(f"run k.metal --kernel scale {buffers} --threads 6 --output-dir out") == 0
    y = np.load("out/buffer1.npy")
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, [[0, 0.5, 1], [1.5, 2, 0]])
    assert [path.name for path in Path("out").iterdir()] == ["buffer1.npy"]
    assert np.load("x.npy").dtype == np.float64
    assert capsys.readouterr().out == (
        "buffer 1: zeros:float32:2x3, float32 2x3: 4 of 6 elements changed, now from 0 to 2\n"
        "buffer 1: written to out/buffer1.npy\n"
    )


def test_expectations(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("want.npy", np.array([0, 2, 4, 6], np.float32))
    launch = "run k.metal --kernel scale --buffers arange:float32:4 zeros:float32:4 4"
    assert run(f"{launch} 2.0 --expect 1=want.npy") == 0
    assert "agrees with want.npy" in capsys.readouterr().out
    assert run(f"{launch} 2.5 --expect 1=want.npy") == 1
    assert "differs from want.npy in 3 of 4 elements; first at [1]: 2.5, expected 2.0" in (
        capsys.readouterr().out
    )
    assert run(f"{launch} 2.5 --expect 1=want.npy --rtol 0.3") == 0
    assert run(f"{launch} 2.5 --expect 2=want.npy") == 2


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("zeros:int32:2x2", np.zeros((2, 2), np.int32)),
        ("ones:half:3", np.ones(3, np.float16)),
        ("arange:uint8:2x2", np.array([[0, 1], [2, 3]], np.uint8)),
        ("uint32:7", np.uint32(7)),
        ("-3", -3),
        ("1e-3", 1e-3),
    ],
)
def test_words_for_buffers(word: str, expected: object) -> None:
    from metalsim.buffer_files import read_buffer

    value = read_buffer(0, word).value
    assert type(value) is type(expected)
    np.testing.assert_array_equal(value, expected)
    assert getattr(value, "dtype", None) == getattr(expected, "dtype", None)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("what", "expected a number"),
        ("zeros:float31:4", "'float31' is no type of numpy"),
        ("zeros:float32:4y4", "expected a shape like 64x64"),
        ("absent.npy", "No such file"),
        ("zeros:float64:4", "float64, which Metal does not have"),
    ],
)
def test_wrong_words(source, word: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(f"run k.metal --kernel too_far --buffers {word}") == 2
    assert message in capsys.readouterr().err


def test_grid_and_constants(source: str) -> None:
    launch = "run k.metal --kernel coordinates --buffers zeros:uint32:4x4"
    assert run(f"{launch} --threads 4 4 --group 2 4 --seed 3 --output-dir out") == 0
    assert (np.load("out/buffer0.npy") == 24).all()
    Path("constant.metal").write_text(CONSTANT)
    launch = "run constant.metal --buffers ones:float32:4 --constant factor=-7"
    assert run(f"{launch} --output-dir out") == 0
    assert (np.load("out/buffer0.npy") == -7).all()


def test_source_errors_show_the_line(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.metal").write_text("kernel void f(device float* x) {\n\tx[0] = y + z;\n}\n")
    assert run("run bad.metal --buffers zeros:float32:1") == 1
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("bad.metal:2:9: error: ")
    assert lines[1:3] == ["  \tx[0] = y + z;", "  \t       ^"]
    assert lines[3].startswith("bad.metal:2:13: error: ")


def test_findings_show_kernel_and_line(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run k.metal --kernel diverging --buffers ones:float32:32") == 1
    error = capsys.readouterr().err
    assert error.startswith("k.metal: kernel diverging: divergence error: ")
    assert "     14 |     threadgroup_barrier(mem_flags::mem_threadgroup);" in error
    assert run("run k.metal --kernel too_far --buffers ones:float32:32 --check") == 1
    error = capsys.readouterr().err
    assert re.match(r"k\.metal:(\d+): kernel too_far: out of bounds: .*\n +\1 \| ", error), error


def test_lines_of_other_files_are_not_quoted(
    source: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("wait.h").write_text(
        "\n" * 6 + "void wait() { threadgroup_barrier(mem_flags::mem_none); }"
    )
    Path("k.metal").write_text(
        '#include <metal_stdlib>\nusing namespace metal;\n#include "wait.h"\n'
        "kernel void f(device float* x, uint i [[thread_position_in_grid]]) {\n"
        "  if (i < 3) wait();\n  x[i] = 1;\n  x[i] = simd_sum(x[i]);\n}\n"
    )
    assert run("run k.metal --buffers ones:float32:32") == 1
    error = capsys.readouterr().err
    assert "at line 7" in error
    assert " | " not in error


def test_a_kernel_must_be_chosen(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("run k.metal") == 2
    assert "--kernel: coordinates, diverging, scale, too_far" in capsys.readouterr().err
    assert run("run k.metal --kernel scales") == 2
    assert "no kernel is named 'scales'" in capsys.readouterr().err
    assert run("run absent.metal") == 2


def test_profile(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    launch = "profile k.metal --kernel scale --buffers ones:float32:64 zeros:float32:64 64 0.5"
    assert run(f"{launch} --threads 64 --json") == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["kernel"], record["threads"], record["group"]) == ("scale", [64], None)
    assert record["counters"]["device_bytes_loaded"] == 256
    assert record["counters"]["device_bytes_stored"] == 256
    assert run(launch) == 0
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "scale: one launch"
    assert any(line.split() == ["device", "bytes", "stored", "256"] for line in table)


def test_as_a_module(source: str) -> None:
    command = "-m metalsim run k.metal --kernel too_far --buffers zeros:float32:2 --threads 1"
    done = subprocess.run(
        [sys.executable, *command.split()], capture_output=True, text=True, check=True
    )
    assert "1 of 2 elements changed" in done.stdout


def test_without_numpy(source: str) -> None:
    script = (
        "import sys; sys.modules['numpy'] = None\n"
        "from metalsim.cli import main; sys.exit(main(['run', 'k.metal', '--buffers', '1']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert "pip install 'metalsim[cli]'" in done.stderr


def test_profile_predicts_for_a_chip(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    launch = "profile k.metal --kernel scale --buffers ones:float32:64 zeros:float32:64 64 0.5"
    assert run(f"{launch} --threads 64 --group 32 --chip m4-max") == 0
    table = capsys.readouterr().out
    assert "predicted on M4-Max: 5." in table
    assert "limit: launch" in table
    assert run(f"{launch} --threads 64 --chip M1 --json") == 0
    predicted = json.loads(capsys.readouterr().out)["predicted"]
    assert predicted["limits"]["DRAM"] == pytest.approx(512 / 68e9)


def test_profile_for_an_unknown_chip(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("profile k.metal --kernel scale --chip M0") == 2
    assert "no chip is named 'M0'; known are M1, " in capsys.readouterr().err


def test_profile_by_line(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    launch = "profile k.metal --kernel scale --buffers ones:float32:64 zeros:float32:64 64 0.5"
    assert run(f"{launch} --threads 64 --by-line") == 0
    rows = capsys.readouterr().out.splitlines()
    (row,) = [row for row in rows if "y[i] = by * x[i]" in row]
    assert row.split()[:3] == ["7", "512", "4"]
    assert run(f"{launch} --threads 64 --json") == 0
    lines = json.loads(capsys.readouterr().out)["lines"]
    (line,) = [line for line in lines if line["counters"].get("device_bytes_stored")]
    assert (line["file"], line["line"]) == ("program_source", 7)


RACE = """kernel void swap(device float* x, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = x[i];
  x[i] = shared[63 - i];
}
"""


def test_check_lists_findings(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("race.metal").write_text(RACE)
    launch = "check race.metal --buffers ones:float32:64"
    assert run(f"{launch} --only bounds,alignment") == 0
    assert capsys.readouterr().out == "race.metal: kernel swap: no findings\n"
    assert run(launch) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "race.metal: kernel swap: 1 finding"
    sides = [next(line for line in lines if text in line) for text in ("] = x[i]", "x[i] = sh")]
    assert " write " in sides[0]
    assert " read " in sides[1]
    assert re.match(r"race\.metal:\d+: kernel swap: race: ", lines[-1])
    assert run(f"{launch} --only race") == 2
    assert "races, bounds" in capsys.readouterr().err


def test_check_as_json(source: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("race.metal").write_text(RACE)
    assert run("check race.metal --buffers ones:float32:64 --json") == 1
    record = json.loads(capsys.readouterr().out)
    (finding,) = record["findings"]
    assert (record["file"], record["kernel"]) == ("race.metal", "swap")
    assert (finding["kind"], finding["variable"], finding["file"]) == (
        "race",
        "shared",
        "race.metal",
    )
    sides = {(side["access"], side["line"]) for side in (finding, finding["other"])}
    assert sides == {("write", 3), ("read", 4)}
    assert run("check race.metal --buffers ones:float32:64 --threads 1 --only races --json") == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []


def test_check_without_rich(source: str) -> None:
    Path("race.metal").write_text(RACE)
    script = (
        "import sys; sys.modules['rich'] = None\n"
        "from metalsim.cli import main\n"
        "sys.exit(main(['check', 'race.metal', '--buffers', 'ones:float32:64']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1
    assert "  write  3  shared[i] = x[i];\n" in done.stdout
