"""Peak memory of one call on a CPU, measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from .measure import calls_of
from .workloads import Workload


def peak_bytes(workload: Workload, contestant: str, most_gb: float) -> int | None:
    """The peak resident bytes of a call above its inputs and masks; None where it cannot run."""
    what = json.dumps([workload._asdict(), contestant, most_gb])
    command = [sys.executable, "-m", __name__, what]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return int(done.stdout) if done.returncode == 0 else None


def resident_peak() -> int:
    """The most bytes the process has held so far."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux hands ru_maxrss on from the parent process; the high-water mark is our own.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status holds no VmHWM")


def forget_peak() -> None:
    """Bring the peak down to what is held now, past what importing torch took; Linux only."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _measure(workload: Workload, contestant: str, most_gb: float) -> int:
    rivals = [] if contestant == "flashmetal" else [contestant]
    few = workload.at(min(64, workload.seqlen_k))
    small, call = (calls_of(*x.build("cpu"), rivals, most_gb)[contestant] for x in (few, workload))
    if isinstance(small, str) or isinstance(call, str):
        raise NotImplementedError(call)
    small()  # loads libraries and starts threads, which is not the call's memory
    if contestant == "flex":
        call()  # compiles
    forget_peak()
    before = resident_peak()
    call()
    return resident_peak() - before


if __name__ == "__main__":
    fields, name, most = json.loads(sys.argv[1])
    with torch.inference_mode():
        print(_measure(Workload(**fields), name, most))
