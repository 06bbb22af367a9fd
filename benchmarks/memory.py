"""Peak memory of one forward call, measured in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from functools import partial

import torch
from cases import CAUSAL, NARROW, call

from flashmetal.tools.bench.contestants import as_padded, contestants, eager, own_engines
from flashmetal.tools.bench.memory import forget_peak, resident_peak
from flashmetal.tools.bench.workloads import Workload

SEQLENS = (2048, 4096, 8192, 16384)
# One head: eager's scores at S=16384 are 1 GiB a copy already.
MEMORY_SUBJECTS = ("stock", "portable", "portable, window 128", "eager")


def peak_bytes(subject: str, seqlen: int) -> int:
    """The peak resident bytes of one call above what its inputs and torch itself hold."""
    command = [sys.executable, __file__, subject, str(seqlen)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _workload(subject: str, seqlen: int) -> Workload:
    """The portable engine is shown at its fullest, causal with softcap, and in a narrow window."""
    options = {"portable": {"softcap": 50.0, **CAUSAL}, "portable, window 128": NARROW}
    return call(subject, seqlen, heads_q=1, heads_k=1, **options.get(subject, {}))


def _measure(subject: str, seqlen: int) -> int:
    # The first calls load libraries and start threads, which is not the call's memory.
    for contestant in contestants(*_workload(subject, 64).build("cpu"), rivals=("eager",)):
        contestant.call()
    problem, inputs = _workload(subject, seqlen).build("cpu")
    if subject == "eager":
        padded = as_padded(problem, inputs)
        run = partial(eager, problem, padded, None, inputs)
    else:
        run = own_engines(problem, inputs)[subject.split(",")[0]]
    forget_peak()
    before = resident_peak()
    run()
    return resident_peak() - before


if __name__ == "__main__":
    with torch.inference_mode():
        print(_measure(sys.argv[1], int(sys.argv[2])))
