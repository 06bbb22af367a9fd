"""The tests that run on an NVIDIA GPU, and what they gave: writes results/nvidia_tests.json.

python benchmarks/nvidia_tests.py [--workers 8]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch
from report import machine

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "nvidia_tests.json"
ON_CUDA = {"FLASHMETAL_TEST_DEVICE": "cuda", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}


class Suite(NamedTuple):
    """What pytest is told, and the environment of these tests."""

    words: tuple[str, ...]
    environment: dict[str, str] = {}  # noqa: RUF012


SUITES = {
    "portable and stock engines on CUDA tensors": Suite(
        ("tests/engines", "-k", "test_portable or stock_cuda or hides"), ON_CUDA
    ),
    "what is kept with lengths": Suite(("tests/host/test_settled.py",)),
    "Metal kernels on the GPU": Suite(("tests/kernels/test_cuda.py",)),
    "metalsim's CUDA engine": Suite(("metalsim/tests/cuda",)),
}


def run(suite: Suite, workers: int) -> dict[str, Any]:
    """Counts of one suite, and its failures by name."""
    command = [sys.executable, "-m", "pytest", *suite.words, "-q", "-n", str(workers)]
    command += ["-p", "no:cacheprovider"]
    with tempfile.NamedTemporaryFile(suffix=".xml") as report:
        environment = {**os.environ, **suite.environment}
        command.append(f"--junitxml={report.name}")
        subprocess.run(command, cwd=ROOT, env=environment, check=False)
        cases = ElementTree.parse(report.name).getroot()[0].findall("testcase")
    marks = [{part.tag for part in case} for case in cases]
    bad = [case for case, found in zip(cases, marks, strict=True) if {"failure", "error"} & found]
    skipped = sum("skipped" in found for found in marks)
    return {
        "pytest": " ".join(suite.words),
        "passed": len(cases) - skipped - len(bad),
        "skipped": skipped,
        "failed": [f"{case.get('classname')}::{case.get('name')}" for case in bad],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    suites = {name: run(suite, options.workers) for name, suite in SUITES.items()}
    record = {"machine": machine(), "device": torch.cuda.get_device_name(), "suites": suites}
    options.results.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(suites, indent=1))
    return 1 if any(found["failed"] for found in suites.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
