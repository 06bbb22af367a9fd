"""What metalsim's tests share: a clean environment, and the compilers of this machine."""

from __future__ import annotations

import os
import shutil

import pytest

_SWITCHES = (
    "METALSIM_CHECK",
    "METALSIM_COOPERATIVE_LAYOUT",
    "METALSIM_SEED",
    "METALSIM_WORKERS",
)


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's switches do not change what the tests see; METALSIM_CXX and the cache stay."""
    for name in _SWITCHES:
        monkeypatch.delenv(name, raising=False)


def compilers() -> list[str]:
    """Each C++ compiler family that is installed here, by a command that METALSIM_CXX takes."""
    if chosen := os.environ.get("METALSIM_CXX"):
        return [chosen]
    names = [f"clang++-{version}" for version in range(25, 15, -1)] + ["clang++"]
    clang = next((name for name in names if shutil.which(name)), None)
    found = [name for name in (clang, "g++") if name and shutil.which(name)]
    return found or ["c++"]


@pytest.fixture(params=compilers())
def compiler(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs once with each compiler."""
    monkeypatch.setenv("METALSIM_CXX", request.param)
    return request.param


@pytest.fixture(params=[name for name in compilers() if "clang" in name])
def clang(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The test runs with the one compiler that finds what it is about."""
    monkeypatch.setenv("METALSIM_CXX", request.param)
    return request.param
