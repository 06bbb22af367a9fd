"""The gradients of the portable and stock engines against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings

from flashmetal.engines import panels, portable, stock
from flashmetal.gradients import QueryRows
from flashmetal.testing import (
    assert_gradients_match_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from ..features import DTYPES, FULL_OR_CAUSAL, SHAPE, TRAINING
from .test_features import calls

ENGINES: dict[str, Any] = {"portable": portable, "stock": stock}


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "many tiles":
        tiling = panels.Tiling(block_q=16, scores=1, least_keys=24)
        monkeypatch.setattr(panels, "tiling", lambda problem: tiling)


def check(engine: Any, call: dict[str, Any], through_lse: bool = True) -> None:
    problem, inputs = make_inputs(**call)
    o, lse = engine.forward(problem, inputs)
    grads = make_output_gradients(o, lse, through_lse=through_lse)
    found = engine.backward(problem, inputs, QueryRows(o, lse, *grads), differentiable(inputs))
    assert_gradients_match_reference(found, problem, inputs, *grads)


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", TRAINING)
def test_portable(feature: str, dtype: torch.dtype) -> None:
    check(portable, {**SHAPE, **TRAINING[feature], "dtype": dtype})


@pytest.mark.parametrize("through_lse", [False, True], ids=["o", "o and lse"])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("feature", FULL_OR_CAUSAL)
def test_stock(feature: str, dtype: torch.dtype, through_lse: bool) -> None:
    check(stock, {**SHAPE, **FULL_OR_CAUSAL[feature], "dtype": dtype}, through_lse)


@pytest.mark.usefixtures("tiles")
# Float64, where the oracle's own roundings count: large ones, beside biases of up to 25.
@example(
    call={"dtype": torch.float64, "head_dim": 2, "softcap": 1.5, "alibi": "head", "seed": 89}
    | {"batch": 2, "heads_q": 1, "seqlen_q": 34, "seqlen_k": 10}
    | {"window_left": 0, "window_right": 24}
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls())
def test_portable_serves_any_call(call: dict[str, Any]) -> None:
    check(portable, call)


@pytest.mark.parametrize("feature", ["plain", "causal", "varlen", "softcap", "sinks"])
def test_two_runs_give_equal_bits(feature: str) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **TRAINING[feature]})
    for engine in ENGINES.values():
        if engine.refuse(problem) is None:
            o, lse = engine.forward(problem, inputs)
            call = problem, inputs, QueryRows(o, lse, torch.ones_like(o)), differentiable(inputs)
            for first, second in zip(engine.backward(*call), engine.backward(*call), strict=True):
                assert (first is None and second is None) or torch.equal(first, second)


@pytest.mark.parametrize("engine", ENGINES)
def test_rows_and_keys_that_see_nothing_have_zero_gradients(engine: str) -> None:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_q": 50, "seqlen_k": 20}, window_right=0)
    o, lse = ENGINES[engine].forward(problem, inputs)
    rows = QueryRows(o, lse, torch.ones_like(o), torch.ones_like(lse))
    found = ENGINES[engine].backward(problem, inputs, rows, ("q", "k", "v"))
    assert torch.all(found.q[:, :30] == 0)
    assert torch.all(found.q[:, 30:] != 0)
    for seqlen_q, seqlen_k in ((0, 20), (20, 0)):
        problem, inputs = make_inputs(**{**SHAPE, "seqlen_q": seqlen_q, "seqlen_k": seqlen_k})
        o, lse = ENGINES[engine].forward(problem, inputs)
        rows = QueryRows(o, lse, torch.ones_like(o), torch.ones_like(lse))
        found = ENGINES[engine].backward(problem, inputs, rows, ("q", "k", "v"))
        assert all(torch.all(x == 0) for x in found[:3])


@pytest.mark.parametrize("engine", ENGINES)
def test_a_sink_of_no_weight_has_no_gradient(engine: str) -> None:
    """Rows without a key then have lse -inf, and exp(-inf - -inf) is not a number."""
    problem, inputs = make_inputs(
        **{**SHAPE, "seqlen_q": 50, "seqlen_k": 20}, window_right=0, sinks=True
    )
    inputs.sinks.fill_(-torch.inf)
    o, lse = ENGINES[engine].forward(problem, inputs)
    rows = QueryRows(o, lse, *make_output_gradients(o, lse))
    found = ENGINES[engine].backward(problem, inputs, rows, ("q", "sinks"))
    assert torch.all(found.sinks == 0)
    assert torch.all(found.q[:, :30] == 0)


def test_a_bias_that_hides_rows_gives_zero_gradients() -> None:
    problem, inputs = make_inputs(**SHAPE, bias=True, softcap=2.0)
    inputs.bias[:, :, 3:9] = -torch.inf
    inputs.bias[:, :, 12, ::2] = -torch.inf
    o, lse = portable.forward(problem, inputs)
    grads = make_output_gradients(o, lse)
    found = portable.backward(problem, inputs, QueryRows(o, lse, *grads), differentiable(inputs))
    assert torch.all(found.q[:, 3:9] == 0)
    assert torch.all(found.bias[:, :, 3:9] == 0)
    assert_gradients_match_reference(found, problem, inputs, *grads)


@pytest.mark.parametrize("feature", ["causal", "everything", "everything, packed", "dropout"])
def test_gradients_equal_differences(feature: str) -> None:
    """gradcheck in float64 through the engine itself; the oracle has no part in it."""
    small = {"seqlen_q": 4, "seqlen_k": 6, "heads_q": 2, "heads_k": 1, "head_dim": 3}
    call = {**small, **TRAINING[feature], "batch": 2, "dtype": torch.float64}
    if "lengths_q" in call:
        call |= {"lengths_q": (2, 0, 3), "lengths_k": (3, 2, 5)}
    if "seqused_k" in call:
        call |= {"seqused_k": (6, 3)}
    problem, inputs = make_inputs(**call)
    names = differentiable(inputs)

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *given: torch.Tensor) -> Any:
            changed = inputs._replace(**dict(zip(names, given, strict=True)))
            o, lse = (x.double() for x in portable.forward(problem, changed))
            portable.forward_into(problem, changed, o, lse)
            ctx.saved = changed, o, lse
            return o, lse.nan_to_num(neginf=0.0)

        @staticmethod
        def backward(ctx: Any, grad_o: Any, grad_lse: Any) -> Any:
            changed, *results = ctx.saved
            rows = QueryRows(*results, grad_o, grad_lse)
            found = portable.backward(problem, changed, rows, names)
            return tuple(getattr(found, name) for name in names)

    given = [getattr(inputs, name).double().nan_to_num().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(Attention.apply, given)
