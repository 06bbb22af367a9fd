"""The rules that say who serves a call of scaled_dot_product_attention: no tensor is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashmetal.integrations import sdpa
from flashmetal.integrations.sdpa_gates import Call, Software, decide

HALF, FULL = torch.float16, torch.float32
NOW = Software((2, 15), (26, 2))


def call(
    rows: int = 2048,
    keys: int = 2048,
    *,
    heads: int = 8,
    heads_k: int = 8,
    head_dim: int = 64,
    head_dim_v: int | None = None,
    batch: int = 1,
    device: str = "mps",
    dtype: torch.dtype = HALF,
    **others: Any,
) -> Call:
    shapes = (
        (batch, heads, rows, head_dim),
        (batch, heads_k, keys, head_dim),
        (batch, heads_k, keys, head_dim_v or head_dim),
    )
    return Call(device, (dtype,) * 3, *shapes, enable_gqa=heads != heads_k, **others)


MASK = ((2048, 2048), torch.bool)
# The call, the software, whether it is flashmetal's, the rule, and a part of the reason.
VERDICTS: dict[str, tuple[Call, Software, bool, str, str]] = {
    "rank": (Call("mps", (HALF,) * 3, (4, 8), (4, 8), (4, 8)), NOW, False, "form", "3 or all of 4"),
    "dtypes-differ": (
        call()._replace(dtypes=(HALF, FULL, FULL)),
        NOW,
        False,
        "form",
        "differ in dtype",
    ),
    "integers": (call(dtype=torch.int32), NOW, False, "form", "does not take torch.int32"),
    "float64": (call(dtype=torch.float64), NOW, False, "form", "no float64"),
    "batch-broadcast": (
        call()._replace(query=(3, 8, 2048, 64)),
        NOW,
        False,
        "form",
        "to be broadcast",
    ),
    "head-dims": (call()._replace(query=(1, 8, 2048, 32)), NOW, False, "form", "head dimension"),
    "heads": (
        call(heads=8, heads_k=4)._replace(enable_gqa=False),
        NOW,
        False,
        "form",
        "heads differ",
    ),
    "heads-multiple": (call(heads=8, heads_k=3), NOW, False, "form", "heads differ"),
    "empty": (call(keys=0), NOW, False, "form", "empty"),
    "mask-and-causal": (call(mask=MASK, is_causal=True), NOW, False, "form", "both"),
    "dropout": (call(dropout_p=1.0), NOW, False, "form", "outside"),
    "mask-dtype": (call(mask=((2048, 2048), torch.int8)), NOW, False, "form", "attn_mask is"),
    "mask-shape": (call(mask=((2048, 2), torch.bool)), NOW, False, "form", "does not broadcast"),
    "mask-rank": (call(mask=((2048,), torch.bool)), NOW, False, "form", "1 dimensions"),
    "sdpa-kernel": (call(fused_allowed=False, always=True), NOW, False, "request", "sdpa_kernel"),
    "always": (call(9, 9, always=True), NOW, True, "always", "every call"),
    "scores-2^32": (
        call(1 << 14, 1 << 17, head_dim=40),
        NOW,
        True,
        "correctness",
        "#179352",
    ),
    "scores-2^32-fused": (call(1 << 14, 1 << 17), NOW, False, "speed", "fused kernel"),
    "value-dim-2.11": (
        call(head_dim=96, head_dim_v=64),
        Software((2, 11), (15, 0)),
        True,
        "correctness",
        "#176767",
    ),
    "mask-2.12": (
        call(9, 9, mask=((9, 9), HALF)),
        Software((2, 12), (26, 0)),
        True,
        "correctness",
        "NaN",
    ),
    "mask-2.12-training": (
        call(9, 9, mask=((9, 9), HALF), needs_grad=True),
        Software((2, 12), (26, 0)),
        False,
        "size",
        "too small",
    ),
    "decode-2.8-training": (
        call(1, 70, needs_grad=True),
        Software((2, 8), (15, 0)),
        False,
        "size",
        "too small",
    ),
    "decode-2.8": (call(1, 70), Software((2, 8), (15, 0)), True, "correctness", "#163597"),
    "decode-2.10": (call(8, 70), Software((2, 10), (15, 0)), True, "correctness", "#174861"),
    "decode-2.10-fewer-keys": (
        call(8, 4),
        Software((2, 10), (15, 0)),
        False,
        "size",
        "too small",
    ),
    "decode-2.7": (call(1, 70, dtype=FULL), Software((2, 7), (15, 0)), False, "size", "too small"),
    "decode-2.11": (call(1, 70), Software((2, 11), (15, 0)), False, "size", "too small"),
    "decode-2.10-other-dim": (
        call(1, 70, head_dim=80, dtype=FULL),
        Software((2, 10), (15, 0)),
        False,
        "size",
        "too small",
    ),
    "half-2.9": (
        call(9, 9, head_dim=40),
        Software((2, 9), (15, 0)),
        True,
        "correctness",
        "#160841",
    ),
    "grouped-2.12": (
        call(9, 9, heads_k=2, dtype=FULL),
        Software((2, 12), (15, 0)),
        True,
        "correctness",
        "#149132",
    ),
    "tiny": (call(64, 64), NOW, False, "size", "too small"),
    "tiny-training": (call(64, 64, needs_grad=True), NOW, False, "size", "too small"),
    "prefill": (call(), NOW, False, "speed", "fused kernel"),
    "prefill-2.12": (call(), Software((2, 12), (15, 0)), True, "memory", "2.12 has no fused"),
    "prefill-macos-14": (call(), Software((2, 15), (14, 5)), True, "memory", "macOS 15"),
    "prefill-other-dim": (call(head_dim=112), NOW, True, "memory", "head dimension 112"),
    "prefill-value-dim": (call(head_dim_v=32), NOW, True, "memory", "one head dimension"),
    "prefill-strides": (call(unit_stride=False), NOW, True, "memory", "last stride"),
    "prefill-dropout": (call(dropout_p=0.1), NOW, True, "memory", "no dropout"),
    "prefill-mask": (call(mask=MASK), NOW, False, "speed", "fused kernel"),
    "prefill-mask-dtype": (
        call(mask=((2048, 2048), FULL)),
        NOW,
        True,
        "memory",
        "dtype of query",
    ),
    "few-rows-other-dim": (
        call(8, 1 << 16, head_dim=32),
        NOW,
        True,
        "memory",
        "8 rows of head dimension 32",
    ),
    "training": (call(needs_grad=True), NOW, True, "memory", "64 MiB of scores"),
    "decode": (call(1, 1 << 16), NOW, False, "speed", "fused kernel"),
    "decode-grouped": (call(1, 1 << 16, heads_k=2), NOW, True, "speed", "4 times"),
    "cpu": (call(device="cpu", dtype=FULL), NOW, False, "speed", "fused kernel"),
    "cpu-training": (
        call(device="cpu", dtype=FULL, needs_grad=True),
        NOW,
        False,
        "speed",
        "fused kernel",
    ),
    "cpu-value-dim": (call(device="cpu", head_dim_v=32), NOW, True, "memory", "one head dimension"),
    "cpu-dropout": (call(device="cpu", dropout_p=0.1), NOW, False, "speed", "the faster way"),
    "cpu-dropout-large": (
        call(1 << 14, 1 << 14, device="cpu", dropout_p=0.1),
        NOW,
        True,
        "memory",
        "4096 MiB of scores: its fused kernels have no dropout",
    ),
    "cpu-mask-gradient": (
        call(device="cpu", mask=((2048, 2048), HALF), mask_needs_grad=True, needs_grad=True),
        NOW,
        True,
        "memory",
        "attn_mask needs gradients",
    ),
    "cpu-old-torch": (call(9, 9, device="cpu"), Software((2, 8)), False, "size", "too small"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name: str) -> None:
    asked, software, served, rule, reason = VERDICTS[name]
    verdict = decide(asked, software)
    assert (verdict.flashmetal, verdict.rule) == (served, rule), verdict
    assert reason in verdict.reason


def test_explain_asks_the_same_rules() -> None:
    query = torch.empty(1, 8, 2048, 64, dtype=HALF, device="meta")
    verdict = sdpa.explain(query, query, query, device="mps", software=NOW)
    assert verdict == decide(call(), NOW)
    assert str(verdict).startswith("PyTorch (speed): ")
    query.requires_grad_()
    verdict = sdpa.explain(query, query, query, device="mps", software=NOW)
    assert verdict == decide(call(needs_grad=True), NOW)
    with torch.no_grad():
        assert not sdpa.explain(query, query, query, device="mps", software=NOW).flashmetal
    mask = torch.empty(2048, 2048, dtype=torch.bool, device="meta")
    options: dict[str, Any] = dict(device="mps", software=Software((2, 12), (26, 0)))
    with torch.no_grad():
        assert sdpa.explain(query, query, query, mask, **options).rule == "correctness"
    assert sdpa.explain(query, query, query, mask, **options).rule == "memory"
    assert sdpa.explain(query, query, query, mask, is_causal=True, **options).rule == "form"
    assert sdpa.explain(query, query, query, scale=float("nan"), **options).rule == "form"
    assert sdpa.explain(query, query, query.mT.contiguous().mT, **options).flashmetal
    assert sdpa.explain(query[..., :8, :], query, query, always=True).rule == "always"
