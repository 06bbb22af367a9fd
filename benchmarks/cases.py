"""The calls that are timed: shapes of real models, and what each must reach on a CPU."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flashmetal.tools.bench.workloads import Workload

CAUSAL: dict[str, Any] = {"window_right": 0}
NARROW: dict[str, Any] = {"window_left": 127, "window_right": 0}
GROUPED: dict[str, Any] = {"heads_q": 32, "heads_k": 8}


@dataclass(frozen=True)
class Case:
    """One call. ``targets`` maps a rival to the least speed-up flashmetal owes over it."""

    workload: Workload
    like: str
    rivals: tuple[str, ...] = ("eager", "sdpa")
    targets: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return self.workload.name


def call(name: str, seqlen: int, **changes: Any) -> Workload:
    """A call of as many queries as keys, 8 heads of 64, in float32, but for the changes."""
    sizes: dict[str, Any] = {"seqlen_q": seqlen, "seqlen_k": seqlen, "dtype": "float32"}
    return Workload(name, **{**sizes, "head_dim_v": changes.get("head_dim", 64), **changes})


UNEVEN = [512, 19, 256, 45, 150, 1024, 8, 65, 350, 32, 206, 750, 125, 17, 435, 90]
PACKED: dict[str, Any] = {"heads_q": 12, "heads_k": 12, "lengths_q": UNEVEN}
# Eager in bfloat16 takes half a minute on a CPU without instructions for it.
_SDPA = ("sdpa",)
_EQUAL = {"sdpa": 0.95}
_BANDED = {"eager": 5.0, "sdpa": 3.0}
_SCORED = {"eager": 2.0}
_LLAMA: dict[str, Any] = {**GROUPED, **CAUSAL}

CASES = (
    Case(call("full", 2048), "ViT, Whisper", targets=_EQUAL),
    Case(call("full, D 128", 2048, head_dim=128), "DiT", targets=_EQUAL),
    Case(call("full, bf16", 2048, dtype="bfloat16"), "ViT, Whisper", _SDPA, _EQUAL),
    Case(call("causal", 4096, **CAUSAL), "GPT-2", targets=_EQUAL),
    Case(
        call("causal, GQA, bf16", 2048, dtype="bfloat16", **_LLAMA), "Llama 3.2 1B", _SDPA, _EQUAL
    ),
    Case(call("chunked prefill", 512, seqlen_k=4096, **_LLAMA), "Llama 3.2 1B"),
    Case(
        call("decode, batch 4", 4096, seqlen_q=1, batch=4, head_dim=128, **_LLAMA),
        "Llama 3.1 8B",
    ),
    Case(call("window 128", 8192, **NARROW), "gpt-oss, no sink", targets=_BANDED),
    Case(call("varlen, 16 uneven", 1024, **PACKED), "BERT", targets=_BANDED),
    Case(call("softcap", 4096, softcap=50.0), "Gemma 2, full", targets=_SCORED),
    Case(call("softcap, causal", 4096, softcap=50.0, **CAUSAL), "Gemma 2", targets=_SCORED),
    Case(call("sinks", 4096, sinks=True), "gpt-oss, full", targets=_SCORED),
    Case(call("sinks, causal", 4096, heads_k=1, sinks=True, **CAUSAL), "gpt-oss", targets=_SCORED),
    Case(call("ALiBi", 4096, alibi=True), "symmetric ALiBi", targets=_SCORED),
    Case(call("ALiBi, causal", 4096, alibi=True, **CAUSAL), "BLOOM, MPT", targets=_SCORED),
    Case(call("additive bias", 2048, bias=True), "T5"),
)
