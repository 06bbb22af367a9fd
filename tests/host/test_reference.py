"""The reference and the default engines against attention written independently in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import flashmetal
from flashmetal.problem import AttentionProblem
from flashmetal.reference import attention_reference
from flashmetal.request import AttentionInputs, Request
from flashmetal.testing import assert_matches_reference, make_inputs

from .naive import naive_attention

SHAPE: dict[str, Any] = dict(
    batch=2, seqlen_q=5, seqlen_k=8, heads_q=4, heads_k=2, head_dim=6, head_dim_v=3
)
LENGTHS: dict[str, Any] = dict(lengths_q=(3, 0, 6, 2, 4), lengths_k=(5, 4, 0, 7, 2))
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "mqa": {"heads_k": 1},
    "scale": {"scale": 2.0},
    "negative scale": {"scale": -0.5},
    "causal": {"window_right": 0},
    "causal, more queries than keys": {"window_right": 0, "seqlen_q": 9, "seqlen_k": 4},
    "window": {"window_left": 2, "window_right": 1},
    "window left": {"window_left": 0},
    "window of hidden rows": {"window_left": 1, "seqlen_q": 9, "seqlen_k": 4, "window_right": 1},
    "softcap": {"softcap": 0.7},
    "softcap, causal": {"softcap": 0.7, "window_right": 0},
    "alibi": {"alibi": True},
    "alibi by batch": {"alibi": "batch_head", "window_right": 0},
    "bias": {"bias": True},
    "bias over keys": {"bias": (True, True, True)},
    "bias a head": {"bias": (True, False, True)},
    "sinks": {"sinks": True},
    "sinks, hidden rows": {"sinks": True, "window_right": 0, "seqlen_q": 9, "seqlen_k": 4},
    "no queries": {"seqlen_q": 0},
    "no keys": {"seqlen_k": 0},
    "no keys, sinks": {"seqlen_k": 0, "sinks": True},
    "no batch": {"batch": 0},
    "seqused_k": {"seqused_k": (3, 0), "window_right": 0},
    "strided": {"strided": True, "window_right": 0},
    "packed": LENGTHS,
    "packed, causal": {**LENGTHS, "window_right": 0},
    "packed, window, sinks": {**LENGTHS, "window_left": 1, "window_right": 1, "sinks": True},
    "packed, bias": {**LENGTHS, "bias": True},
    "packed, bias over keys": {**LENGTHS, "bias": (False, True, True)},
    "packed, alibi by batch": {**LENGTHS, "alibi": "batch_head"},
    "packed, seqused_k": {**LENGTHS, "seqused_k": (5, 1, 0, 3, 0), "window_right": 0},
    "packed, strided": {**LENGTHS, "strided": True},
    "packed, no sequence": {"lengths_q": (0,), "lengths_k": (0,)},
    "packed, no keys": {"lengths_q": (2, 3), "lengths_k": (0, 0), "sinks": True},
    "packed, no queries": {"lengths_q": (0, 0), "lengths_k": (2, 3)},
    "everything": {
        **LENGTHS,
        "window_left": 3,
        "window_right": 1,
        "softcap": 1.5,
        "alibi": True,
        "bias": True,
        "sinks": True,
        "seqused_k": (4, 4, 0, 6, 2),
    },
}


def make(case: str, dtype: torch.dtype) -> tuple[AttentionProblem, AttentionInputs]:
    return make_inputs(**{**SHAPE, **CASES[case]}, dtype=dtype)


@pytest.mark.parametrize("case", CASES)
def test_oracle_equals_numpy(case: str) -> None:
    problem, inputs = make(case, torch.float64)
    for actual, expected in zip(
        attention_reference(problem, inputs, compute_dtype=torch.float64),
        naive_attention(problem, inputs),
        strict=True,
    ):
        assert actual.dtype == torch.float64
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("impl", ["auto", "portable", "reference"])
@pytest.mark.parametrize("case", CASES)
def test_public_functions_match_the_oracle(case: str, impl: str) -> None:
    problem, inputs = make(case, torch.float32)
    options = dict(
        softmax_scale=problem.scale,
        window_size=(problem.window_left, problem.window_right),
        softcap=problem.softcap,
        alibi_slopes=inputs.alibi_slopes,
        bias=inputs.bias,
        s_aux=inputs.sinks,
        return_lse=True,
        impl=impl,
    )
    if problem.layout == "varlen":
        options["seqused_k"] = inputs.seqused_k
        lengths = inputs.cu_seqlens_q, inputs.cu_seqlens_k, problem.seqlen_q, problem.seqlen_k
        o, lse = flashmetal.flash_attn_varlen_func(*inputs[:3], *lengths, **options)
    elif inputs.seqused_k is None:
        o, lse = flashmetal.flash_attn_func(*inputs[:3], **options)
    else:  # dense with used lengths is reached through the operator alone
        window = problem.window_left, problem.window_right
        request = Request("test", None, None, problem.scale, False, *window, 0.0, impl)
        o, lse = torch.ops.flashmetal.attention(*inputs, *request)
    assert_matches_reference(o, lse, problem, inputs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_low_precision_rounds_probabilities_and_output_only(dtype: torch.dtype) -> None:
    """mtlflashattn summed scores in half: |q.k| above 65504 became inf."""
    problem, inputs = make_inputs(seqlen_q=16, dtype=dtype)
    inputs = inputs._replace(q=inputs.q * 300, k=inputs.k * 300)
    problem = problem._replace(scale=1e-5)
    o, lse = attention_reference(problem, inputs)
    exact, exact_lse = attention_reference(problem, inputs, compute_dtype=torch.float64)
    eps = torch.finfo(dtype).eps
    assert (o.double() - exact).abs().max() <= eps * exact.abs().max()
    assert (lse.double() - exact_lse).abs().max() <= 1e-5
    assert o.dtype == dtype
    assert lse.dtype == torch.float32


def test_max_seqlen_may_be_longer_and_a_tensor() -> None:
    _, inputs = make("packed, causal", torch.float32)
    lengths = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    expected = flashmetal.flash_attn_varlen_func(*inputs[:3], *lengths, 6, 7, causal=True)
    for longer in (torch.tensor(9), np.int64(8), 2000):
        for impl in ("auto", "reference"):
            out = flashmetal.flash_attn_varlen_func(
                *inputs[:3], *lengths, longer, longer, causal=True, impl=impl
            )
            torch.testing.assert_close(out, expected)


def test_causal_overrides_the_right_bound_only() -> None:
    q, k, v = torch.randn(3, 1, 9, 2, 8)
    func = flashmetal.flash_attn_func
    expected = func(q, k, v, window_size=(3, 0))
    for right in (-1, 0, 5):
        assert torch.equal(func(q, k, v, causal=True, window_size=(3, right)), expected)


def test_a_bound_as_wide_as_the_sequence_is_no_bound() -> None:
    """So that one token with causal=True, the decode step, is planned as full attention."""
    inputs = AttentionInputs(torch.randn(1, 1, 2, 8), *torch.randn(2, 1, 9, 2, 8))
    problem = AttentionProblem.of(inputs, Request("test", causal=True, window_left=8))
    assert (problem.window_left, problem.window_right) == (-1, -1)
    problem = AttentionProblem.of(inputs, Request("test", causal=True, window_left=7))
    assert (problem.window_left, problem.window_right) == (7, -1)


def test_autocast_does_not_lower_the_precision() -> None:
    q, k, v = torch.randn(3, 1, 40, 2, 16)
    for impl in ("auto", "portable", "reference"):
        expected = flashmetal.flash_attn_func(
            q, k, v, softcap=2.0 * (impl == "portable"), impl=impl
        )
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = flashmetal.flash_attn_func(q, k, v, softcap=2.0 * (impl == "portable"), impl=impl)
        assert torch.equal(out, expected)
