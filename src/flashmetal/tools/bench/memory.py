"""Peak memory of one call, measured in a process of its own."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from .measure import Options, contest
from .workloads import Workload


def peak_bytes(workload: Workload, contestant: str, options: Options) -> int | None:
    """The peak bytes of a call above its inputs and masks; None where it cannot run.

    On a CPU of the process's resident memory, on a GPU of what torch took from the driver.
    """
    what = json.dumps([workload, contestant, options])
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


def _peak(device: str) -> int:
    """The most bytes held so far where the call's tensors lie."""
    if device == "cpu":
        return resident_peak()
    torch.accelerator.synchronize()
    if device == "mps":
        return torch.mps.driver_allocated_memory()  # torch keeps what it has taken
    return torch.cuda.max_memory_allocated()


def _forget(device: str) -> None:
    if device == "cpu":
        forget_peak()
    elif device == "mps":
        torch.mps.empty_cache()
    else:
        torch.cuda.reset_peak_memory_stats()


def _measure(workload: Workload, contestant: str, options: Options) -> int:
    options = options._replace(rivals=tuple({contestant} - {"flashmetal"}))
    few = workload.at(min(64, workload.seqlen_k))
    small, call = (contest(x, options).calls[contestant] for x in (few, workload))
    if isinstance(small, str) or isinstance(call, str):
        raise NotImplementedError(call)
    small()  # loads libraries and starts threads, which is not the call's memory
    if contestant == "flex":
        call()  # compiles
    _forget(options.device)
    before = _peak(options.device)
    call()
    return _peak(options.device) - before


if __name__ == "__main__":
    fields, name, asked = json.loads(sys.argv[1])
    chosen = Options(*asked)
    with torch.inference_mode(not chosen.training):
        print(_measure(Workload(*fields), name, chosen))
