"""Compilers are found, libraries are built once, and a second process needs no compiler."""

from __future__ import annotations

import os
import shlex
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

import metalsim
from metalsim.cache import cache_directory
from metalsim.compiler import find_compiler

SOURCE = "kernel void f(device float* x, uint i [[thread_position_in_grid]]) { x[i] = 3 * x[i]; }"
LAUNCH = f"""
import torch, metalsim
x = torch.ones(4)
metalsim.compile_shader({SOURCE!r}).f(x)
print(x.tolist())
"""


def run_python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


class Recorded(NamedTuple):
    """A cache directory of its own, and a compiler that writes a line for each call."""

    environment: dict[str, str]
    log: Path

    @property
    def cache(self) -> Path:
        return Path(self.environment["METALSIM_CACHE_DIR"])

    def calls(self) -> list[str]:
        return self.log.read_text().splitlines()


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    """The machine is built here once; the program is not."""
    directory = tmp_path_factory.mktemp("recording")
    log = directory / "calls"
    log.touch()
    compiler = find_compiler()
    script = directory / ("g++-recording" if compiler.family == "gcc" else "clang++-recording")
    script.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {shlex.join(compiler.command)} "$@"\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    cache = directory / "cache"
    environment = {"METALSIM_CXX": str(script), "METALSIM_CACHE_DIR": str(cache)}
    run_python("import metalsim; metalsim.compile_shader('kernel void g() {}')", **environment)
    return Recorded(environment, log)


@pytest.fixture
def recorded(recording: Recorded, tmp_path: Path) -> Recorded:
    shutil.copytree(recording.cache, tmp_path / "cache")
    environment = {**recording.environment, "METALSIM_CACHE_DIR": str(tmp_path / "cache")}
    recording.log.write_text("")
    return Recorded(environment, recording.log)


@pytest.fixture
def empty_cache(tmp_path: Path) -> Path:
    """A cache that holds the machine alone."""
    metalsim.compile_shader(SOURCE)
    directory = tmp_path / "cache"
    directory.mkdir()
    for machine in cache_directory().glob("machine-*.so"):
        shutil.copy(machine, directory)
    return directory


def test_a_second_process_starts_no_compiler(recorded: Recorded) -> None:
    assert run_python(LAUNCH, **recorded.environment) == "[3.0, 3.0, 3.0, 3.0]"
    calls = recorded.calls()
    assert len(calls) == 2
    assert run_python(LAUNCH, **recorded.environment) == "[3.0, 3.0, 3.0, 3.0]"
    assert recorded.calls() == calls


def test_processes_at_once_build_once(recorded: Recorded) -> None:
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: run_python(LAUNCH, **recorded.environment), range(3)))
    assert results == ["[3.0, 3.0, 3.0, 3.0]"] * 3
    assert len(recorded.calls()) == 2
    assert {path.suffix for path in recorded.cache.iterdir()} == {".so", ".json"}


def test_the_cache_may_move(recorded: Recorded, tmp_path: Path) -> None:
    run_python(LAUNCH, **recorded.environment)
    calls = recorded.calls()
    recorded.cache.rename(tmp_path / "moved")
    environment = {**recorded.environment, "METALSIM_CACHE_DIR": str(tmp_path / "moved")}
    assert run_python(LAUNCH, **environment) == "[3.0, 3.0, 3.0, 3.0]"
    assert recorded.calls() == calls


def test_what_changes_the_result_changes_the_library(empty_cache: Path) -> None:
    source = (
        "constant int k [[function_constant(0)]];\n"
        "kernel void f(device float* x) { x[0] = float(k); }"
    )
    x = torch.zeros(1)
    for value in (2, 3, 2):
        library = metalsim.compile_shader(
            source, function_constants={"k": value}, cache_dir=empty_cache
        )
        library.f(x)
        assert x.item() == value


def test_an_included_file_that_changes_is_read_again(tmp_path: Path) -> None:
    source = '#include "k.h"\nkernel void f(device float* x) { x[0] = K; }'
    x = torch.zeros(1)
    for value in (2, 3):
        (tmp_path / "k.h").write_text(f"#define K {value}\n")
        metalsim.compile_shader(source, include_dirs=[tmp_path]).f(x)
        assert x.item() == value


def test_a_damaged_record_is_built_again(empty_cache: Path) -> None:
    metalsim.compile_shader(SOURCE, cache_dir=empty_cache)
    (record,) = empty_cache.glob("program-*.json")
    record.write_text("{")
    x = torch.ones(1)
    metalsim.compile_shader(SOURCE, cache_dir=empty_cache).f(x)
    assert x.item() == 3


def test_a_failed_compile_leaves_nothing(empty_cache: Path) -> None:
    with pytest.raises(SyntaxError):
        metalsim.compile_shader("kernel void f(device int* x) { x[0] = y; }", cache_dir=empty_cache)
    assert {path.name.split("-")[0] for path in empty_cache.iterdir()} == {"machine"}


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="set METALSIM_CACHE_DIR"):
        metalsim.compile_shader(SOURCE, cache_dir=tmp_path / "file" / "cache")


def fake_programs(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).write_text("#!/bin/sh\n")
        (directory / name).chmod(0o755)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["g++", "clang++", "clang++-9", "clang++-19", "clang++-tidy"], "clang++-19"),
        (["g++", "clang++"], "clang++"),
        (["g++", "c++"], "g++"),
    ],
)
def test_which_compiler(
    names: list[str], chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_programs(tmp_path, *names)
    monkeypatch.delenv("METALSIM_CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler().command == (str(tmp_path / chosen),)


def test_a_chosen_compiler_may_have_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_programs(tmp_path, "zig")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("METALSIM_CXX", "zig c++")
    assert find_compiler().command == (str(tmp_path / "zig"), "c++")
    assert find_compiler().family == "zig"
    monkeypatch.setenv("METALSIM_CXX", "gone++")
    with pytest.raises(metalsim.CompilerNotFoundError, match="METALSIM_CXX names 'gone\\+\\+'"):
        find_compiler()


def test_no_compiler_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("METALSIM_CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ziglang", None)
    with pytest.raises(
        metalsim.CompilerNotFoundError, match="apt install clang.*pip install ziglang"
    ):
        find_compiler()
