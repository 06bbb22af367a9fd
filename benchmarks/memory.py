"""Peak memory of one forward call, measured in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial
from pathlib import Path

import torch
from cases import CAUSAL, FULL, Case
from contestants import as_padded, contestants, eager, own_engines

SEQLENS = (2048, 4096, 8192, 16384)
# One head: eager's scores at S=16384 are 1 GiB a copy already.
MEMORY_SUBJECTS = ("stock", "portable", "portable, window 128", "eager")


def peak_bytes(subject: str, seqlen: int) -> int:
    """The peak resident bytes of one call above what its inputs and torch itself hold."""
    command = [sys.executable, __file__, subject, str(seqlen)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _resident_peak() -> int:
    """The most bytes the process has held so far."""
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux hands ru_maxrss on from the parent process; the high-water mark is our own.
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError("/proc/self/status holds no VmHWM")


def _forget_peak() -> None:
    """Bring the peak down to what is held now, past what importing torch took; Linux only."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")


def _case(subject: str, seqlen: int) -> Case:
    """The portable engine is shown at its fullest, causal with softcap, and in a narrow window."""
    window = {"portable": CAUSAL, "portable, window 128": (127, 0)}.get(subject, FULL)
    softcap = 50.0 if subject == "portable" else 0.0
    return Case(subject, "", seqlen, heads_q=1, heads_k=1, window=window, softcap=softcap)


def _measure(subject: str, seqlen: int) -> int:
    # The first calls load libraries and start threads, which is not the call's memory.
    for contestant in contestants(*_case(subject, 64).build(), rivals=("eager",)):
        contestant.call()
    problem, inputs = _case(subject, seqlen).build()
    if subject == "eager":
        padded = as_padded(problem, inputs)
        call = partial(eager, problem, padded, None, inputs)
    else:
        call = own_engines(problem, inputs)[subject.split(",")[0]]
    _forget_peak()
    before = _resident_peak()
    call()
    return _resident_peak() - before


if __name__ == "__main__":
    with torch.inference_mode():
        print(_measure(sys.argv[1], int(sys.argv[2])))
