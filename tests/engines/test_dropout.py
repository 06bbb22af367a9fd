"""Dropout: every engine drops what the definition drops, and nothing from the row sums."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flashmetal
from flashmetal.engines import panels, portable
from flashmetal.reference import attention_reference
from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import DROPOUT, DTYPES, SHAPE


@pytest.mark.parametrize("small", [False, True], ids=["one tile", "many tiles"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", DROPOUT)
def test_portable(
    feature: str, dtype: torch.dtype, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if small:
        tiling = panels.Tiling(block_q=16, scores=1, least_keys=24)
        monkeypatch.setattr(panels, "tiling", lambda problem: tiling)
    problem, inputs = make_inputs(**{**SHAPE, **DROPOUT[feature]}, dtype=dtype)
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)


def test_the_row_sums_keep_what_is_dropped() -> None:
    problem, inputs = make_inputs(**SHAPE, dropout_p=0.6)
    _, lse = attention_reference(problem, inputs)
    assert torch.equal(lse, attention_reference(problem._replace(dropout_p=0.0), inputs)[1])


def test_the_mean_over_masks_is_the_call_without_dropout() -> None:
    """Its square error is the variance that independent drops have: p / (1 - p) * sum P^2 V^2."""
    masks, problem, inputs = 200, *make_inputs(**SHAPE, dropout_p=0.25)
    total = torch.zeros_like(inputs.q)
    for seed in range(masks):
        state = torch.tensor([seed, 1])
        total += portable.forward(problem, inputs._replace(rng_state=state))[0]
    whole = problem._replace(dropout_p=0.0)
    exact, lse = attention_reference(whole, inputs)
    # P^2 is the softmax of doubled scores, but for its denominator.
    doubled = whole._replace(scale=2 * problem.scale)
    mean, lse_doubled = attention_reference(doubled, inputs._replace(v=inputs.v.square()))
    squares = mean * (lse_doubled - 2 * lse).exp().transpose(1, 2)[..., None]
    variance = squares.mean() / 3 / masks
    assert 0.8 < float((total / masks - exact).square().mean() / variance) < 1.25


def call(**options: Any) -> Any:
    q, k = torch.ones(2, 40, 4, 8), torch.ones(2, 50, 2, 8)
    return flashmetal.flash_attn_func(q, k, k, 0.5, **options)


@pytest.mark.parametrize("impl", ["auto", "portable", "reference"])
def test_manual_seed_reproduces_a_call(impl: str) -> None:
    torch.manual_seed(5)
    first, second = call(impl=impl), call(impl=impl)
    torch.manual_seed(5)
    assert torch.equal(call(impl=impl), first)
    assert torch.equal(call(impl=impl), second)
    assert not torch.equal(first, second)


def test_the_mask_is_the_third_value() -> None:
    out, _, mask = call(return_attn_probs=True)
    assert mask.shape == (2, 4, 40, 50)
    assert mask.dtype == out.dtype
    # All scores are equal and all values 1: a row's output is its share of kept entries, doubled.
    shares = (mask > 0).float().mean(-1).transpose(1, 2)[..., None] * 2
    torch.testing.assert_close(out, shares.expand_as(out))
    assert flashmetal.flash_attn_func(out, out, out, return_attn_probs=True)[2] is None


def test_a_refused_call_draws_nothing() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="head_dim"):
        flashmetal.flash_attn_func(torch.ones(1, 4, 1, 8), *[torch.ones(1, 4, 1, 9)] * 2, 0.5)
    assert torch.equal(torch.get_rng_state(), before)


def test_other_engines_say_that_they_do_not_drop() -> None:
    with pytest.raises(NotImplementedError, match="no dropout"):
        call(impl="stock")
