"""The gradients of the portable and stock engines against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings

from flashmetal.engines import panels, portable, stock
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
    grad_o, grad_lse = make_output_gradients(o, lse, through_lse=through_lse)
    wanted = differentiable(inputs)
    found = engine.backward(problem, inputs, o, lse, grad_o, grad_lse, wanted)
    assert_gradients_match_reference(found, problem, inputs, grad_o, grad_lse)


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
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(call=calls())
def test_portable_serves_any_call(call: dict[str, Any]) -> None:
    problem, _ = make_inputs(**call)
    if portable.refuse_backward(problem) is None:
        check(portable, call)
