"""Both Metal forward kernels, in the simulator, against the float64 oracle."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import FEATURES, in_turn
from .simulated import TILE_GPUS, bits, simulated_forward

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SHAPE = {"seqlen_q": 37, "seqlen_k": 70, "heads_q": 4, "heads_k": 2, "head_dim": 64}


@pytest.mark.parametrize("kernel", ["simdgroup", "scalar"])
@pytest.mark.parametrize(("feature", "dtype"), in_turn(FEATURES, DTYPES))
def test_feature(feature: str, dtype: torch.dtype, kernel: str) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **FEATURES[feature]}, dtype=dtype)
    assert_matches_reference(*simulated_forward(problem, inputs, kernel=kernel), problem, inputs)


HEAD_DIMS = (1, 8, 20, 32, 40, 64, 72, 80, 96, 112, 128, 160, 192, 256)


@pytest.mark.parametrize(("head_dim", "gpu"), in_turn(HEAD_DIMS, TILE_GPUS))
def test_head_dim(head_dim: int, gpu: str) -> None:
    dtype = DTYPES[head_dim % 3]
    shape = {**SHAPE, "head_dim": head_dim, "heads_q": 2, "heads_k": 1}
    problem, inputs = make_inputs(**shape, window_right=0, dtype=dtype)
    assert_matches_reference(*simulated_forward(problem, inputs, gpu=gpu), problem, inputs)


@pytest.mark.parametrize("dims", [(192, 128), (24, 72), (33, 1), (256, 64)], ids=str)
def test_unequal_head_dims(dims: tuple[int, int]) -> None:
    problem, inputs = make_inputs(**{**SHAPE, "head_dim": dims[0], "head_dim_v": dims[1]})
    assert_matches_reference(*simulated_forward(problem, inputs), problem, inputs)


@pytest.mark.parametrize(("seqlen_q", "seqlen_k"), [(1, 1), (1, 33), (33, 1), (65, 31), (64, 64)])
def test_lengths_around_the_tile(seqlen_q: int, seqlen_k: int) -> None:
    shape = {**SHAPE, "seqlen_q": seqlen_q, "seqlen_k": seqlen_k}
    for window in ({}, {"window_right": 0}, {"window_left": 3, "window_right": 1}):
        problem, inputs = make_inputs(**shape, **window)
        assert_matches_reference(*simulated_forward(problem, inputs), problem, inputs)


def test_no_keys_give_zero_and_the_sinks_alone() -> None:
    for sinks in (False, True):
        problem, inputs = make_inputs(**{**SHAPE, "seqlen_k": 0}, sinks=sinks)
        o, lse = simulated_forward(problem, inputs)
        assert torch.all(o == 0)
        assert_matches_reference(o, lse, problem, inputs)


def test_two_runs_give_equal_bits() -> None:
    problem, inputs = make_inputs(**SHAPE, window_left=11, window_right=4, dtype=torch.float16)
    first, second = (simulated_forward(problem, inputs) for _ in range(2))
    assert all(map(torch.equal, bits(*first), bits(*second)))


def test_a_nan_reaches_the_rows_that_see_it_and_no_other() -> None:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_k": 37}, window_right=0)
    inputs.k[:, 20] = math.nan
    o, lse = simulated_forward(problem, inputs)
    assert torch.isfinite(o[:, :20]).all()
    assert torch.isfinite(lse[..., :20]).all()
    assert torch.isnan(o[:, 20:]).all()
    assert torch.isnan(lse[..., 20:]).all()


@st.composite
def problems(draw: st.DrawFn) -> dict[str, object]:
    """Any combination of features, with sizes small enough to simulate quickly."""
    heads_k = draw(st.sampled_from([1, 2]))
    fields: dict[str, object] = {
        "heads_k": heads_k,
        "heads_q": heads_k * draw(st.sampled_from([1, 3])),
        "head_dim": draw(st.sampled_from([16, 33, 64])),
        "head_dim_v": draw(st.sampled_from([16, 33, 64])),
        "dtype": draw(st.sampled_from(DTYPES)),
        "window_left": draw(st.sampled_from([-1, -1, 0, 7, 40])),
        "window_right": draw(st.sampled_from([-1, 0, 0, 5])),
        "softcap": draw(st.sampled_from([0.0, 1.5])),
        "alibi": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "sinks": draw(st.booleans()),
        "strided": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
    }
    lengths = st.integers(0, 45)
    if draw(st.booleans()):
        count = draw(st.integers(1, 4))
        fields["lengths_q"] = tuple(draw(lengths) for _ in range(count))
        fields["lengths_k"] = tuple(draw(lengths) for _ in range(count))
    else:
        fields |= {"batch": draw(st.integers(1, 2)), "seqlen_q": draw(lengths)}
        fields["seqlen_k"] = draw(lengths)
    return fields


UNHURRIED = settings(suppress_health_check=list(HealthCheck))


@given(problems(), st.sampled_from(TILE_GPUS), st.sampled_from(["simdgroup", "scalar"]))
@settings(UNHURRIED, max_examples=settings().max_examples // 4)
def test_any_combination(fields: dict[str, object], gpu: str, kernel: str) -> None:
    problem, inputs = make_inputs(**fields)
    o, lse = simulated_forward(problem, inputs, gpu=gpu, kernel=kernel)
    assert_matches_reference(o, lse, problem, inputs)
