"""The Metal backward kernels, in the simulator, against the float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flashmetal.engines import metal
from flashmetal.engines.metal import metal_runtime
from flashmetal.gradients import QueryRows
from flashmetal.testing import (
    assert_gradients_match_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from ..features import SHAPE, TRAINING, in_turn
from .simulated import TILE_GPUS, bits, runtime
from .test_forward import UNHURRIED, problems

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check(call: dict[str, Any], gpu: str = "M1", through_lse: bool = True) -> None:
    problem, inputs = make_inputs(**call)
    with metal_runtime(runtime(gpu)):
        o, lse = metal.forward(problem, inputs)
        grads = make_output_gradients(o, lse, through_lse=through_lse)
        found = metal.backward(problem, inputs, QueryRows(o, lse, *grads), differentiable(inputs))
    assert_gradients_match_reference(found, problem, inputs, *grads)


# Features whose code is their own; the others are in these, or in the long matrix.
SHORT = (
    *("causal, more rows than keys", "no keys but sinks", "varlen, used", "seqused_k", "strided"),
    *("multi-query", "window", "softcap", "alibi by batch", "bias by head", "bias by row"),
    *("left padding", "left padding, everything", "odd dimension", "everything"),
    *("everything, packed", "dropout, packed", "dropout, bias"),
)


@pytest.mark.parametrize(("feature", "dtype"), in_turn(TRAINING, DTYPES, SHORT))
def test_feature(feature: str, dtype: torch.dtype) -> None:
    check({**SHAPE, **TRAINING[feature], "dtype": dtype})


HEAD_DIMS = (1, 20, 64, 72, 128, 192, 256)


@pytest.mark.parametrize(
    ("head_dim", "gpu"), in_turn(HEAD_DIMS, TILE_GPUS, short=(20, 64, 192, 256))
)
def test_head_dim(head_dim: int, gpu: str) -> None:
    dtype = DTYPES[head_dim % 3]
    check({**SHAPE, "head_dim": head_dim, "window_right": 0, "dtype": dtype}, gpu, False)


@pytest.mark.parametrize("dims", [(192, 128), (24, 72), (33, 1)], ids=str)
def test_unequal_head_dims(dims: tuple[int, int]) -> None:
    check({**SHAPE, "head_dim": dims[0], "head_dim_v": dims[1], "dropout_p": 0.2})


@given(problems(), st.sampled_from(TILE_GPUS), st.booleans())
@settings(UNHURRIED, max_examples=settings().max_examples // 20)
def test_any_combination(fields: dict[str, object], gpu: str, through_lse: bool) -> None:
    check(dict(fields), gpu, through_lse)


def test_results_of_the_forward_may_lie_anyhow() -> None:
    """flash_attn takes an out with any strides."""
    problem, inputs = make_inputs(**{**SHAPE, "batch": 2})
    with metal_runtime(runtime()):
        o, lse = metal.forward(problem, inputs)
        others = (x.mT.contiguous().mT for x in (o, lse))
        rows = QueryRows(*others, torch.ones_like(o))
        found = metal.backward(problem, inputs, rows, differentiable(inputs))
    assert_gradients_match_reference(found, problem, inputs, torch.ones_like(o), None)


def test_two_runs_give_equal_bits() -> None:
    problem, inputs = make_inputs(**{**SHAPE, **TRAINING["everything, packed"]})
    with metal_runtime(runtime()):
        o, lse = metal.forward(problem, inputs)
        call = problem, inputs, QueryRows(o, lse, torch.ones_like(o)), differentiable(inputs)
        first, second = ([x for x in metal.backward(*call) if x is not None] for _ in range(2))
    assert all(map(torch.equal, bits(*first), bits(*second)))
