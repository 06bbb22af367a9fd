"""The commands and the Python of the README, as they are typed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"


def test_every_example_runs(tmp_path: Path) -> None:
    """In the order of the page: later examples use the files of earlier ones."""
    text = README.read_text(encoding="utf-8")
    shell = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    assert all(
        f"\n{command} " in shell for command in ("metalsim run", "pytest", "metalsim profile")
    )
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-e", "-c", shell],
        cwd=tmp_path,
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1000 of 1000 elements changed" in done.stdout
    assert "4 passed" in done.stdout
    assert re.search(r"device bytes stored +4,000", done.stdout), done.stdout
    python = re.search(r"## Run a kernel.*?```python\n(.*?)```", text, re.DOTALL)
    assert python is not None
    subprocess.run([sys.executable, "-c", python[1]], cwd=tmp_path, check=True)
