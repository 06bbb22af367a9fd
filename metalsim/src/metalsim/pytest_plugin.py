"""For pytest: the fixture `compile_shader`, whose kernels fail the test on any finding, and options
that run each of its tests several times: `--metalsim-seeds N` under N orders of threads,
`--metalsim-layouts A,B` under several layouts of cooperative tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from . import library
from .errors import PROGRAM_SOURCE, KernelReportedError, SimulationError
from .quoted_lines import quote_finding
from .schedule import schedule

CompileShader = Callable[..., "CheckedLibrary"]


class CheckedKernel:
    """A kernel of a check build; a launch that goes wrong ends the test."""

    def __init__(self, kernel: library.Kernel, source: str) -> None:
        self._kernel = kernel
        self._source = source

    def __call__(self, *args: object, **options: Any) -> None:
        """Launch as `metalsim.Kernel` does."""
        __tracebackhide__ = True
        try:
            self._kernel(*args, **options)
        except KernelReportedError:
            raise
        except SimulationError as error:
            quoted = quote_finding(error, self._kernel.name, PROGRAM_SOURCE, self._source)
            finding = f"metalsim: {quoted}"
        else:
            return
        # Not an Exception: code under test that catches errors cannot hide a finding.
        pytest.fail(finding)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


class CheckedLibrary:
    """A library whose kernels are checked."""

    def __init__(self, shader_library: library.ShaderLibrary, source: str) -> None:
        self._library = shader_library
        self._source = source

    def __getattr__(self, name: str) -> CheckedKernel:
        return CheckedKernel(getattr(self._library, name), self._source)

    def __dir__(self) -> list[str]:
        return dir(self._library)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add --metalsim-seeds and --metalsim-layouts."""
    group = parser.getgroup("metalsim")
    group.addoption(
        "--metalsim-seeds",
        type=int,
        default=0,
        metavar="N",
        help="run each test that uses compile_shader N times, its threads ordered at random from "
        "the seeds 1 to N (default: once, as METALSIM_SEED says)",
    )
    group.addoption(
        "--metalsim-layouts",
        default="",
        metavar="LAYOUTS",
        help="run each test that uses compile_shader under each of these layouts of cooperative "
        "tensors, as in apple10,older,random:1 (default: as METALSIM_COOPERATIVE_LAYOUT says)",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test for each seed and each layout."""
    seeds = metafunc.config.getoption("--metalsim-seeds")
    if seeds and "_metalsim_seed" in metafunc.fixturenames:
        metafunc.parametrize(
            "_metalsim_seed", range(1, seeds + 1), ids="seed{}".format, indirect=True
        )
    layouts = metafunc.config.getoption("--metalsim-layouts")
    if layouts and "_metalsim_layout" in metafunc.fixturenames:
        metafunc.parametrize("_metalsim_layout", layouts.split(","), indirect=True)


@pytest.fixture
def _metalsim_seed(request: pytest.FixtureRequest) -> Iterator[None]:  # pyright: ignore[reportUnusedFunction]
    with schedule(seed=getattr(request, "param", None)):
        yield


@pytest.fixture
def _metalsim_layout(request: pytest.FixtureRequest) -> str | None:  # pyright: ignore[reportUnusedFunction]
    return getattr(request, "param", None)


@pytest.fixture
def compile_shader(_metalsim_seed: None, _metalsim_layout: str | None) -> CompileShader:
    """`metalsim.compile_shader` with the checks on, for the test or for the code that it tests.

    A launch that metalsim finds wrong (SimulationError) fails the test with the finding, even where
    the code under test catches exceptions. To test that a finding is made, use
    `metalsim.compile_shader(source, check=True)` with `pytest.raises`.
    """

    def compile_checked(source: str, **options: Any) -> CheckedLibrary:
        options["check"] = True
        options.setdefault("cooperative_layout", _metalsim_layout)
        return CheckedLibrary(library.compile_shader(source, **options), source)

    return compile_checked
