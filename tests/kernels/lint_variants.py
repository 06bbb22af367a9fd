"""Lint every Metal source that LAUNCHES render: `python -m tests.kernels.lint_variants`.

The headers of the kernels are no programs of their own, so they are linted as what reaches the
compiler: for the oldest Metal that has what they use, and for 4.1, the newest.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

import metalsim
from flashmetal.engines.metal import Runtime, metal_runtime

from .launches import LAUNCHES, SHAPE
from .simulated import gpu_of

NEWEST = "4.1"


class _Idle:
    """A compiled library whose kernels do nothing."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *arguments, **options: None


def rendered_sources() -> dict[str, str]:
    """Every source that the launches compile, named by the first launch that does."""
    sources = dict[str, str]()
    for name, launch in LAUNCHES.items():

        def compile_shader(source: str, name: str = name) -> Any:
            sources.setdefault(source, name)
            return _Idle()

        runtime = Runtime(compile_shader, "cpu", gpu_of(launch.gpu))
        for dtype in (torch.float32, torch.bfloat16):
            with metal_runtime(runtime):
                launch.call({**SHAPE, "dtype": dtype, **launch.fields})
    return {f"{name} ({at})": source for at, (source, name) in enumerate(sources.items())}


def main() -> int:
    """Print the findings; 1 if there are any."""
    sources = rendered_sources()
    jobs = [
        (name, version)
        for name, source in sources.items()
        for version in ("4.0" if "<metal_tensor>" in source else "3.1", NEWEST)
    ]

    def lint(job: tuple[str, str]) -> list[metalsim.LintFinding]:
        return metalsim.lint(sources[job[0]], metal_version=job[1])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(lint, jobs))
    for (name, version), findings in zip(jobs, results, strict=True):
        for finding in findings:
            print(f"{name}, Metal {version}: {finding}")
    print(f"{len(sources)} rendered kernels linted")
    return 1 if any(results) else 0


if __name__ == "__main__":
    sys.exit(main())
