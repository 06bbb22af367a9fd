"""The shapes of attention in real models, from their public configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from ..problem import AttentionInputs, AttentionProblem
from ..testing import make_inputs


class Workload(NamedTuple):
    """One forward call; sizes and windows as in :class:`..problem.AttentionProblem`.

    ``lengths_q`` and ``lengths_k`` are of packed sequences; ``lengths_k`` is as ``lengths_q`` by
    default. Caches of decodes are contiguous.
    """

    name: str
    batch: int = 1
    seqlen_q: int = 4096
    seqlen_k: int = 4096
    heads_q: int = 8
    heads_k: int = 8
    head_dim: int = 64
    head_dim_v: int = 64
    dtype: str = "float16"
    window_left: int = -1
    window_right: int = -1
    softcap: float = 0.0
    sinks: bool = False
    alibi: bool = False
    scale: float | None = None
    lengths_q: list[int] | None = None
    lengths_k: list[int] | None = None

    def build(self, device: str) -> tuple[AttentionProblem, AttentionInputs]:
        """The problem and its tensors, normally distributed."""
        options = self._asdict()
        del options["name"]
        options["dtype"] = getattr(torch, self.dtype)
        return make_inputs(**options, device=device)

    def at(self, seqlen: int) -> Workload:
        """With as many queries, or keys of a decode, in sequences of one length."""
        kept = self._replace(lengths_q=None, lengths_k=None, seqlen_k=seqlen)
        return kept if self.seqlen_q == 1 else kept._replace(seqlen_q=seqlen)


def workloads(words: list[str]) -> list[Workload]:
    """Those whose names contain one of the words, whatever the case; all for none.

    Raises ValueError for a word that is in no name.
    """
    entries = json.loads(Path(__file__).with_name("workloads.json").read_text())
    known = [Workload(**entry) for entry in entries]
    for word in words:
        if not any(word.lower() in x.name.lower() for x in known):
            raise ValueError(f"flashmetal bench: no workload has {word!r} in its name; see --list")
    return [x for x in known if not words or any(w.lower() in x.name.lower() for w in words)]
