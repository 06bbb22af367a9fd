"""The tools that judge the engines: each must notice what it is for."""

from __future__ import annotations

import inspect
import math
import types
from typing import Any

import pytest
import torch
from torch import Tensor

from flashmetal import reference
from flashmetal.problem import AttentionProblem
from flashmetal.reference import attention_reference
from flashmetal.request import AttentionInputs
from flashmetal.testing import assert_matches_reference, error_budget, make_inputs

SHAPE: dict[str, Any] = dict(seqlen_q=20, seqlen_k=33, heads_q=4, heads_k=2, head_dim=16)
ALL: dict[str, Any] = dict(
    window_left=9, window_right=2, softcap=2.0, bias=True, alibi=True, sinks=True
)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def test_the_budget_is_twice_the_eager_error_and_one_rounding() -> None:
    exact = torch.tensor([1.0, -8.0, 2.0, -math.inf], dtype=torch.float64)
    eager = torch.tensor([1.0, -8.0, 2.25, -math.inf])
    assert error_budget(eager, exact) == 2 * (0.25 + 2**-23 * 8.0)
    assert error_budget(eager.half(), exact) == 2 * (0.25 + 2**-10 * 8.0)
    assert error_budget(eager[3:], exact[3:]) == 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_correctly_rounded_result_passes(dtype: torch.dtype) -> None:
    problem, inputs = make_inputs(**SHAPE, **ALL, dtype=dtype)
    o, lse = attention_reference(problem, inputs, compute_dtype=torch.float64)
    assert_matches_reference(o.to(dtype), lse.float(), problem, inputs)


# (text of reference.py, what it becomes): one for each rule of the semantics.
RULES: dict[str, tuple[str, str]] = {
    "causal is bottom-right": ("= k.shape[2] - q.shape[2]", "= 0"),
    "window is inclusive on the left": ("distance < -problem", "distance <= -problem"),
    "window is inclusive on the right": ("distance > problem", "distance >= problem"),
    "a window hides on both sides": ("hidden = hidden | (distance < ", "(distance < "),
    "scale is applied": (" * problem.scale", ""),
    "softcap is applied": ("if problem.softcap:", "if False:"),
    "softcap is natural-log": (
        "torch.tanh(s / problem.softcap)",
        "torch.tanh(s * 1.442695 / problem.softcap)",
    ),
    "softcap comes before the bias": (
        "if problem.softcap:",
        "s, bias = s + bias, None\n    if problem.softcap:",
    ),
    "softcap comes before the mask": (
        "return s.masked_fill(hidden, -torch.inf)",
        "return s.masked_fill(hidden, -problem.softcap)",
    ),
    "bias is added": ("s = s + bias", "s = s - bias"),
    "ALiBi is a distance": ("distance.abs()", "distance"),
    "ALiBi is subtracted": ("s = s - slopes", "s = s + slopes"),
    "sinks are in the sum": ("p, lse = _softmax(s, inputs.sinks)", "p, lse = _softmax(s, None)"),
    "sinks have no value": ("sinks.to(s.dtype)[:, None, None]", "s[..., :1] + 0 * sinks[0]"),
    "sinks are natural-log": ("sinks.to(s.dtype)", "(sinks / 1.442695).to(s.dtype)"),
    "neighbouring heads share a key head": (
        "k.transpose(1, 2).repeat_interleave(groups, 1)",
        "k.transpose(1, 2).repeat(1, groups, 1, 1)",
    ),
    "lse is natural": ("return p, lse.", "return p, 1.442695 * lse."),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", RULES)
def test_a_broken_rule_is_noticed(rule: str, dtype: torch.dtype) -> None:
    text, broken = RULES[rule]
    source = inspect.getsource(reference)
    assert text in source, "the rule's text has changed: adapt this mutation"
    module = types.ModuleType("flashmetal.broken_reference")
    exec(source.replace(text, broken), module.__dict__)
    problem, inputs = make_inputs(**SHAPE, **ALL, dtype=dtype)
    o, lse = module.attention_reference(problem, inputs)
    with pytest.raises(AssertionError, match="is wrong at"):
        assert_matches_reference(o, lse, problem, inputs)


def results() -> tuple[Tensor, Tensor, AttentionProblem, AttentionInputs]:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_k": 10}, window_right=0)
    return *attention_reference(problem, inputs), problem, inputs


def test_wrong_results_are_noticed_wherever_they_are() -> None:
    o, lse, problem, inputs = results()
    assert_matches_reference(o, lse, problem, inputs)
    for value in (math.nan, math.inf, -math.inf, 0.1):
        for where in ((0, 3, 1, 5), (0, 19, 3, 15)):  # a hidden row and a visible one
            wrong = o.clone()
            wrong[where] += value
            with pytest.raises(AssertionError, match=rf"o is wrong at \({where[0]}, {where[1]}, "):
                assert_matches_reference(wrong, lse, problem, inputs)
    for value in (math.nan, math.inf, 0.0):
        for where in ((0, 1, 3), (0, 2, 19)):
            wrong = lse.clone()
            wrong[where] = value
            with pytest.raises(AssertionError, match="lse is wrong at"):
                assert_matches_reference(o, wrong, problem, inputs)


def test_lse_in_log2_is_noticed() -> None:
    o, lse, problem, inputs = results()
    with pytest.raises(AssertionError, match="lse is wrong at"):
        assert_matches_reference(o, lse * math.log2(math.e), problem, inputs)


def test_a_rounding_of_its_sum_is_allowed_in_lse() -> None:
    """Of a single key with score 0, where eager makes no error at all."""
    problem, inputs = make_inputs(seqlen_q=1, seqlen_k=1, head_dim=4)
    inputs.q.zero_()
    o, lse = attention_reference(problem, inputs)
    assert_matches_reference(o, lse + 2**-23, problem, inputs)
    with pytest.raises(AssertionError, match="lse is wrong"):
        assert_matches_reference(o, lse + 2**-21, problem, inputs)


def test_wrong_forms_are_noticed() -> None:
    o, lse, problem, inputs = results()
    strided = o.transpose(1, 2).contiguous().transpose(1, 2)
    for wrong, words in ((o.double(), "o is"), (o[:, :-1], "o is"), (strided, "o is not cont")):
        with pytest.raises(AssertionError, match=words):
            assert_matches_reference(wrong, lse, problem, inputs)
    for wrong in (lse.double(), lse[:, :-1]):
        with pytest.raises(AssertionError, match="lse is"):
            assert_matches_reference(o, wrong, problem, inputs)


def test_a_failure_says_where_and_by_how_much() -> None:
    o, lse, problem, inputs = results()
    o[0, 15, 2, 7] += 1.0
    with pytest.raises(AssertionError) as caught:
        assert_matches_reference(o, lse, problem, inputs)
    message = str(caught.value)
    assert "(0, 15, 2, 7)" in message
    assert "error 1.000e+00" in message
    assert "1 of" in message
    assert "seqlen_k=10" in message


def test_inputs_are_surrounded_by_nan() -> None:
    for options in ({"strided": True}, {"poison": True}):
        _, inputs = make_inputs(**SHAPE, batch=2, **options)
        _, plain = make_inputs(**SHAPE, batch=2)
        for x, expected in zip(inputs[:3], plain[:3], strict=True):
            assert torch.equal(x, expected)
            whole = x.as_strided((x.untyped_storage().nbytes() // 4,), (1,), 0)
            assert int(whole.isnan().sum()) == whole.numel() - x.numel() > 0
            assert x.storage_offset() > 0
            assert x.stride(-1) == 1
    _, inputs = make_inputs(**SHAPE, seqused_k=(7,))
    assert torch.all(inputs.k[0, 7:].isnan())
    assert not inputs.k[0, :7].isnan().any()


def test_inputs_are_equal_for_equal_seeds_only() -> None:
    first, again, other = (make_inputs(**SHAPE, **ALL, seed=seed)[1] for seed in (1, 1, 2))
    for a, b, c in zip(first[:6], again[:6], other[:6], strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
