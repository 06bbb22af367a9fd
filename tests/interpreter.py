"""Code in a new interpreter, for what happens when Python starts or modules are imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What ``python *arguments`` does, with this process's path and environment beside the given.

    >>> assert python("-c", "print(1)").stdout == "1\\n"
    """
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=env)


def output(code: str, **environment: str) -> str:
    """What ``code`` prints, stripped; AssertionError with its errors where it fails."""
    done = python("-c", code, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
