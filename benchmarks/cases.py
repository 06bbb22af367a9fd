"""The calls that are timed: shapes of real models, and what each must reach on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from flashmetal.problem import AttentionInputs, AttentionProblem
from flashmetal.testing import make_inputs

CAUSAL = (-1, 0)
FULL = (-1, -1)


@dataclass(frozen=True)
class Case:
    """One call. ``targets`` maps a rival to the least speed-up flashmetal owes over it."""

    name: str
    like: str
    seqlen_q: int = 0
    seqlen_k: int = 0
    batch: int = 1
    heads_q: int = 8
    heads_k: int = 8
    head_dim: int = 64
    dtype: torch.dtype = torch.float32
    window: tuple[int, int] = FULL
    softcap: float = 0.0
    alibi: bool = False
    bias: bool = False
    sinks: bool = False
    lengths: tuple[int, ...] = ()
    rivals: tuple[str, ...] = ("eager", "sdpa")
    targets: dict[str, float] = field(default_factory=dict)

    def shape(self) -> str:
        """In short, as the table prints it."""
        heads = f"{self.heads_q}" + (f"/{self.heads_k}" if self.heads_k != self.heads_q else "")
        rows = f"S{self.seqlen_q}" + (f"x{self.seqlen_k}" if self.seqlen_k else "")
        if self.lengths:
            rows = f"{min(self.lengths)}..{max(self.lengths)}"
        batch = len(self.lengths) or self.batch
        dtype = str(self.dtype).removeprefix("torch.")
        return f"B{batch} H{heads} {rows} D{self.head_dim} {dtype}"

    def build(self) -> tuple[AttentionProblem, AttentionInputs]:
        """The problem and its tensors, normally distributed."""
        return make_inputs(
            batch=self.batch,
            seqlen_q=self.seqlen_q,
            seqlen_k=self.seqlen_k or self.seqlen_q,
            heads_q=self.heads_q,
            heads_k=self.heads_k,
            head_dim=self.head_dim,
            dtype=self.dtype,
            window_left=self.window[0],
            window_right=self.window[1],
            softcap=self.softcap,
            alibi=self.alibi,
            bias=(True, False, False) if self.bias else False,
            sinks=self.sinks,
            lengths_q=self.lengths or None,
        )


UNEVEN = (512, 19, 256, 45, 150, 1024, 8, 65, 350, 32, 206, 750, 125, 17, 435, 90)
# Eager in bfloat16 takes half a minute on a CPU without instructions for it.
_SDPA = ("sdpa",)
_EQUAL = {"sdpa": 0.95}
_BANDED = {"eager": 5.0, "sdpa": 3.0}
_SCORED = {"eager": 2.0}

CASES = (
    Case("full", "ViT, Whisper", 2048, targets=_EQUAL),
    Case("full, D 128", "DiT", 2048, head_dim=128, targets=_EQUAL),
    Case("full, bf16", "ViT, Whisper", 2048, dtype=torch.bfloat16, rivals=_SDPA, targets=_EQUAL),
    Case("causal", "GPT-2", 4096, window=CAUSAL, targets=_EQUAL),
    Case(
        "causal, GQA, bf16",
        "Llama 3.2 1B",
        2048,
        heads_q=32,
        dtype=torch.bfloat16,
        window=CAUSAL,
        rivals=_SDPA,
        targets=_EQUAL,
    ),
    Case("chunked prefill", "Llama 3.2 1B", 512, 4096, heads_q=32, window=CAUSAL),
    Case("decode, batch 4", "Llama 3.1 8B", 1, 4096, 4, 32, 8, 128, window=CAUSAL),
    Case("window 128", "gpt-oss, no sink", 8192, window=(127, 0), targets=_BANDED),
    Case("varlen, 16 uneven", "BERT", heads_q=12, heads_k=12, lengths=UNEVEN, targets=_BANDED),
    Case("softcap", "Gemma 2, full", 4096, softcap=50.0, targets=_SCORED),
    Case("softcap, causal", "Gemma 2", 4096, softcap=50.0, window=CAUSAL, targets=_SCORED),
    Case("sinks", "gpt-oss, full", 4096, sinks=True, targets=_SCORED),
    Case("sinks, causal", "gpt-oss", 4096, heads_k=1, sinks=True, window=CAUSAL, targets=_SCORED),
    Case("ALiBi", "symmetric ALiBi", 4096, alibi=True, targets=_SCORED),
    Case("ALiBi, causal", "BLOOM, MPT", 4096, alibi=True, window=CAUSAL, targets=_SCORED),
    Case("additive bias", "T5", 2048, bias=True),
)
