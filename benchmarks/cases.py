"""The calls that are timed: shapes of real models, and what each must reach on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from flashmetal.problem import AttentionInputs, AttentionProblem

CAUSAL = (-1, 0)
FULL = (-1, -1)


@dataclass(frozen=True)
class Case:
    """One call. ``targets`` maps a contestant to the least speed-up flashmetal owes over it."""

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

    def build(self, seed: int = 0) -> tuple[AttentionProblem, AttentionInputs]:
        """The problem and its tensors, normally distributed."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator).to(self.dtype)

        longest_q, longest_k = self.seqlen_q, self.seqlen_k or self.seqlen_q
        leading_q, leading_k = (self.batch, longest_q), (self.batch, longest_k)
        cu_seqlens = None
        if self.lengths:
            longest_q = longest_k = max(self.lengths)
            leading_q = leading_k = (sum(self.lengths),)
            cu_seqlens = torch.tensor([0, *self.lengths]).cumsum(0).to(torch.int32)
        q = normal(*leading_q, self.heads_q, self.head_dim)
        k = normal(*leading_k, self.heads_k, self.head_dim)
        v = normal(*leading_k, self.heads_k, self.head_dim)
        bias = normal(1, self.heads_q, longest_q, longest_k) if self.bias else None
        # The slopes of the ALiBi paper for a power of two of heads.
        slopes = 2.0 ** (-8.0 / self.heads_q * torch.arange(1, self.heads_q + 1))
        sinks = torch.randn(self.heads_q, generator=generator)
        problem = AttentionProblem(
            layout="varlen" if self.lengths else "dense",
            batch=len(self.lengths) or self.batch,
            seqlen_q=longest_q,
            seqlen_k=longest_k,
            heads_q=self.heads_q,
            heads_k=self.heads_k,
            head_dim=self.head_dim,
            head_dim_v=self.head_dim,
            dtype=self.dtype,
            device="cpu",
            scale=self.head_dim**-0.5,
            window_left=self.window[0],
            window_right=self.window[1],
            softcap=self.softcap,
            bias=(True, False, False) if self.bias else None,
            bias_dtype=self.dtype if self.bias else None,
            alibi="head" if self.alibi else None,
            sinks=self.sinks,
            seqused_k=False,
            needs_grad=False,
        )
        inputs = AttentionInputs(
            q=q,
            k=k,
            v=v,
            bias=bias,
            alibi_slopes=slopes if self.alibi else None,
            sinks=sinks if self.sinks else None,
            cu_seqlens_q=cu_seqlens,
            cu_seqlens_k=cu_seqlens,
            seqused_k=None,
        )
        return problem, inputs


_UNEVEN = (512, 19, 256, 45, 150, 1024, 8, 65, 350, 32, 206, 750, 125, 17, 435, 90)
_EQUAL = {"sdpa": 0.95}
_BANDED = {"eager": 5.0, "sdpa": 3.0}
_SCORED = {"eager": 2.0}

CASES = (
    Case("full", "ViT, Whisper", 2048, targets=_EQUAL),
    Case("full, D 128", "DiT", 2048, head_dim=128, targets=_EQUAL),
    Case("full, bf16", "ViT, Whisper", 2048, dtype=torch.bfloat16, targets=_EQUAL),
    Case("causal", "GPT-2", 4096, window=CAUSAL, targets=_EQUAL),
    Case(
        "causal, GQA, bf16",
        "Llama 3.2 1B",
        2048,
        heads_q=32,
        dtype=torch.bfloat16,
        window=CAUSAL,
        targets=_EQUAL,
    ),
    Case("chunked prefill", "Llama 3.2 1B", 512, 4096, heads_q=32, window=CAUSAL),
    Case("decode, batch 4", "Llama 3.1 8B", 1, 4096, 4, 32, 8, 128, window=CAUSAL),
    Case("window 128", "gpt-oss, no sink", 8192, window=(127, 0), targets=_BANDED),
    Case("varlen, 16 uneven", "BERT", heads_q=12, heads_k=12, lengths=_UNEVEN, targets=_BANDED),
    Case("softcap", "Gemma 2, full", 4096, softcap=50.0, targets=_SCORED),
    Case("softcap, causal", "Gemma 2", 4096, softcap=50.0, window=CAUSAL, targets=_SCORED),
    Case("sinks", "gpt-oss, full", 4096, sinks=True, targets=_SCORED),
    Case("sinks, causal", "gpt-oss", 4096, heads_k=1, sinks=True, window=CAUSAL, targets=_SCORED),
    Case("ALiBi", "symmetric ALiBi", 4096, alibi=True, targets=_SCORED),
    Case("ALiBi, causal", "BLOOM, MPT", 4096, alibi=True, window=CAUSAL, targets=_SCORED),
    Case("additive bias", "T5", 2048, bias=True),
)
