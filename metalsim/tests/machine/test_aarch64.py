"""The arm64 context switch and machine, cross-compiled and run by qemu where it is there."""

from __future__ import annotations

import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from metalsim import machine

HERE = Path(__file__).parent / "aarch64"
CROSS = "aarch64-linux-gnu-g++"
CLANGS = ["clang++", *(f"clang++-{version}" for version in range(25, 15, -1))]
CLANG = next((name for name in CLANGS if shutil.which(name)), None)
PORTABLE_FLAGS = [
    flag
    for flag in machine.kernel_flags("clang", "fast")
    if not flag.startswith(("-march", "-mcpu"))
]


def require(*programs: str | None) -> None:
    """Skip, naming what to install, unless every program is here."""
    if platform.machine() == "aarch64":
        pytest.skip("this is an arm64 machine: every other test runs the arm64 switch")
    missing = [
        program or "clang++" for program in programs if not program or not shutil.which(program)
    ]
    if missing:
        pytest.skip(
            f"needs {', '.join(missing)}: apt install g++-aarch64-linux-gnu qemu-user clang"
        )


def run_in_qemu(command: list[str], program: Path) -> str:
    """Build with `command`, run, and give what it printed; fails on a status other than 0."""
    subprocess.run([*command, "-o", str(program)], check=True)
    result = subprocess.run(
        ["qemu-aarch64", "-L", "/usr/aarch64-linux-gnu", str(program)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_a_switch_keeps_the_callee_saved_registers(tmp_path: Path):
    require(CROSS, "qemu-aarch64")
    sources = [str(HERE / "context_check.cpp"), str(machine.DIRECTORY / "context.cpp")]
    command = [CROSS, "-std=c++20", "-O2", f"-I{machine.DIRECTORY}", *sources]
    assert run_in_qemu(command, tmp_path / "context_check") == "1000 turns\n"


def test_the_machine_runs_kernels(tmp_path: Path):
    require(CROSS, "qemu-aarch64", CLANG)
    sources = [str(HERE / "kernel_check.cpp"), *map(str, machine.runtime_sources())]
    command = [
        CLANG or "",
        "--target=aarch64-linux-gnu",
        *PORTABLE_FLAGS,
        *sources,
        "-pthread",
        "-lm",
    ]
    printed = run_in_qemu(command, tmp_path / "kernel_check")
    assert "5 threads (first: 0) in threadgroup_barrier" in printed
