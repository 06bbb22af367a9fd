"""The shapes of attention in real models, from their public configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

import torch

from ...problem import AttentionProblem
from ...request import AttentionInputs
from ...testing import make_inputs


class Workload(NamedTuple):
    """One forward call; sizes and windows as in :class:`..problem.AttentionProblem`.

    ``lengths_q`` and ``lengths_k`` are of packed sequences; ``lengths_k`` is as ``lengths_q`` by
    default. Caches of decodes are contiguous. ``bias`` is one for all entries of the batch.
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
    bias: bool = False
    scale: float | None = None
    lengths_q: list[int] | None = None
    lengths_k: list[int] | None = None

    def build(self, device: str) -> tuple[AttentionProblem, AttentionInputs]:
        """The problem and its tensors, normally distributed."""
        options = self._asdict()
        del options["name"]
        options["dtype"] = getattr(torch, self.dtype)
        options["bias"] = (True, False, False) if self.bias else False
        return make_inputs(**options, device=device)

    def shape(self) -> str:
        """The sizes in short, such as B1 H32/8 S512x4096 D128 bfloat16."""
        heads = f"{self.heads_q}" + (f"/{self.heads_k}" if self.heads_k != self.heads_q else "")
        rows = f"S{self.seqlen_q}" + (f"x{self.seqlen_k}" if self.seqlen_k != self.seqlen_q else "")
        if self.lengths_q:
            rows = f"{min(self.lengths_q)}..{max(self.lengths_q)}"
        batch = len(self.lengths_q or []) or self.batch
        return f"B{batch} H{heads} {rows} D{self.head_dim} {self.dtype}"

    def cut(self, rows: int) -> Workload:
        """Of the first few sequences no more than ``rows`` queries and keys."""
        few = [x and [min(n, rows) for n in x[:4]] for x in (self.lengths_q, self.lengths_k)]
        return self._replace(
            batch=min(self.batch, 2),
            seqlen_q=min(self.seqlen_q, rows),
            seqlen_k=min(self.seqlen_k, rows),
            lengths_q=few[0],
            lengths_k=few[1],
        )

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
