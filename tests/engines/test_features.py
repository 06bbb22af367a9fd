"""The portable and stock engines against the float64 oracle, feature by feature and together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from flashmetal.engines import panels, portable, stock
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs, Request
from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import CACHES, DEVICE, DTYPES, FEATURES, FULL_OR_CAUSAL, SHAPE

SMALL_TILES = panels.Tiling(block_q=16, scores=1, least_keys=24)
REFUSED_BY_STOCK = {*"k_format v_format window_left softcap alibi bias dropout_p".split()}
BOTH = pytest.mark.parametrize("engine", [portable, stock], ids=["portable", "stock"])


@pytest.fixture(params=["one tile", "many tiles"])
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls small enough for a test in one tile, and cut into many."""
    if request.param == "many tiles":
        monkeypatch.setattr(panels, "tiling", lambda problem: SMALL_TILES)


# Few queries each of sequences of uneven lengths, which go together.
LENGTHS: dict[str, Any] = {
    "lengths_q": (1, 1, 1, 3, 3, 0, 40, 1),
    "lengths_k": (70, 0, 9, 33, 2, 8, 64, 51),
    "window_right": 0,
}
DECODES: dict[str, dict[str, Any]] = {
    "plain": {},
    "short pages": {"page_size": 3, "sinks": True},
    "window": {"page_size": 8, "window_left": 10, "sinks": True},
    "window, both sides": {"window_left": 5, "window_right": 1},
    "softcap": {"page_size": 32, "softcap": 2.0, "sinks": True},
    "alibi": {"page_size": 8, "alibi": "batch_head"},
    "alibi, softcap, quantised": {
        "page_size": 8,
        "alibi": True,
        "softcap": 3.0,
        "k_format": "int8",
        "v_format": "int4",
    },
    "fp8, window": {"page_size": 16, "k_format": "fp8", "v_format": "fp8", "window_left": 20},
    "bias": {"page_size": 8, "bias": True},
    "dropout": {"dropout_p": 0.3},
}


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", DECODES)
def test_uneven_decodes(feature: str, dtype: torch.dtype) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **LENGTHS, **DECODES[feature]}, dtype=dtype)
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)
    check_stock(problem, inputs, DECODES[feature])


@pytest.mark.usefixtures("tiles")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FEATURES | CACHES)
def test_portable(feature: str, dtype: torch.dtype) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **(FEATURES | CACHES)[feature]}, dtype=dtype)
    assert portable.refuse(problem) is None
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("feature", FULL_OR_CAUSAL | CACHES)
def test_stock(feature: str, dtype: torch.dtype) -> None:
    """Also caches, those it refuses excepted."""
    call = (FULL_OR_CAUSAL | CACHES)[feature]
    check_stock(*make_inputs(**{**SHAPE, **call}, dtype=dtype), call)


def check_stock(problem: AttentionProblem, inputs: AttentionInputs, call: dict[str, Any]) -> None:
    """It refuses what it must, and nothing else."""
    refused = bool(REFUSED_BY_STOCK & set(call)) or problem.head_dim != problem.head_dim_v
    assert (stock.refuse(problem) is not None) == refused
    if not refused:
        assert_matches_reference(*stock.forward(problem, inputs), problem, inputs)


@pytest.mark.parametrize("engine", [portable, stock], ids=["portable", "stock"])
@pytest.mark.parametrize("missing", [False, True], ids=["all", "one missing"])
def test_pages_in_order_and_with_a_gap(engine: Any, missing: bool) -> None:
    """Neighbouring pages are read where they lie; -1 in their midst hides keys."""
    pages = torch.tensor([[2, 3, 4, 5, 6], [11, 12, 13, 14, -1]], dtype=torch.int32)
    if missing:
        pages[0, 2] = -1
    cache = torch.randn(16, 8, 2, 32)
    cache[[0, 1, 7, 8, 9, 10, 15]] = torch.nan
    inputs = AttentionInputs(torch.randn(2, 3, 4, 32), cache, cache * 2, block_table=pages)
    inputs = inputs._replace(seqused_k=torch.tensor([37, 32], dtype=torch.int32))
    inputs = inputs._replace(leftpad_k=torch.tensor([0, 11], dtype=torch.int32))
    problem = AttentionProblem.of(inputs, Request("test", causal=True))
    assert_matches_reference(*engine.forward(problem, inputs), problem, inputs)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    """Every feature at once, lengths from nothing to over a tile."""
    length = st.integers(0, 60)
    heads_k = draw(st.integers(1, 3))
    head_dim = draw(st.integers(1, 40))
    batch = draw(st.integers(1, 3))
    window = st.integers(-1, 40)
    call: dict[str, Any] = {
        "heads_k": heads_k,
        "heads_q": heads_k * draw(st.integers(1, 3)),
        "head_dim": head_dim,
        "head_dim_v": draw(st.sampled_from((head_dim, 1, 17, 48))),
        "dtype": draw(st.sampled_from(DTYPES)),
        "window_left": draw(window),
        "window_right": draw(st.one_of(st.just(0), window)),
        "softcap": draw(st.sampled_from((0.0, 1.5, 30.0))),
        "alibi": draw(st.sampled_from((False, "head", "batch_head"))),
        "bias": draw(st.one_of(st.just(False), st.tuples(*[st.booleans()] * 3))),
        "sinks": draw(st.booleans()),
        "strided": draw(st.booleans()),
        "poison": draw(st.booleans()),
        "seed": draw(st.integers(0, 99)),
        "device": DEVICE,
    }
    lengths_k = draw(st.lists(length, min_size=batch, max_size=batch))
    if draw(st.booleans()):
        call["lengths_q"] = draw(st.lists(length, min_size=batch, max_size=batch))
        call["lengths_k"] = lengths_k
    else:
        call |= {"batch": batch, "seqlen_q": draw(length), "seqlen_k": lengths_k[0]}
        lengths_k = [lengths_k[0]] * batch
    if draw(st.booleans()):
        call["seqused_k"] = [draw(st.integers(0, most)) for most in lengths_k]
    return call


PROFILE = settings(
    max_examples=2 * settings().max_examples,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.mark.usefixtures("tiles")
# One visible key, whose lse is nearly 0 and whose sum is not 1 in log2 units.
@example(
    call={"head_dim": 10, "dtype": torch.float16, "window_left": 0, "window_right": 0}
    | {"heads_q": 1, "seqlen_q": 27, "seqlen_k": 1}
)
@PROFILE
@given(call=calls())
def test_portable_serves_any_call(call: dict[str, Any]) -> None:
    problem, inputs = make_inputs(**call)
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)


@PROFILE
@given(call=calls(), causal=st.booleans())
def test_stock_serves_any_call_it_does_not_refuse(call: dict[str, Any], causal: bool) -> None:
    call |= {"softcap": 0.0, "alibi": False, "bias": False, "head_dim_v": None, "window_left": -1}
    problem, inputs = make_inputs(**{**call, "window_right": 0 if causal else -1})
    assert stock.refuse(problem) is None
    assert_matches_reference(*stock.forward(problem, inputs), problem, inputs)


@BOTH
def test_two_runs_give_equal_bits(engine: Any) -> None:
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_q": 300, "seqlen_k": 700}, window_right=0)
    first, second = engine.forward(problem, inputs), engine.forward(problem, inputs)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@BOTH
@pytest.mark.parametrize("feature", ["causal", "causal, square", "varlen", "no keys"])
def test_out_is_written_in_place(engine: Any, feature: str) -> None:
    problem, inputs = make_inputs(**{**SHAPE, **FULL_OR_CAUSAL[feature]})
    expected, lse = engine.forward(problem, inputs)
    out = torch.full_like(expected, torch.nan)
    o, lse_again = engine.forward(problem, inputs, out)
    assert o is out
    assert torch.equal(out, expected)
    assert torch.equal(lse, lse_again)


@BOTH
def test_inputs_are_left_alone(engine: Any) -> None:
    problem, inputs = make_inputs(**SHAPE, sinks=True, window_right=0)
    before = [x.clone() for x in inputs if x is not None]
    engine.forward(problem, inputs)
    assert all(map(torch.equal, before, (x for x in inputs if x is not None)))


def test_a_bias_of_minus_infinity_hides_rows() -> None:
    for sinks in (False, True):
        problem, inputs = make_inputs(**SHAPE, bias=True, sinks=sinks)
        assert inputs.bias is not None
        inputs.bias[:, :, 3:9] = -torch.inf
        inputs.bias[:, :, 12, ::2] = -torch.inf
        o, lse = portable.forward(problem, inputs)
        assert torch.all(o[:, 3:9] == 0)
        assert_matches_reference(o, lse, problem, inputs)


def test_scores_far_apart_do_not_overflow() -> None:
    problem, inputs = make_inputs(**SHAPE, scale=40.0, sinks=True)
    for engine in (portable, stock):
        assert_matches_reference(*engine.forward(problem, inputs), problem, inputs)
    for sink in (-300.0, 300.0, -torch.inf):
        assert inputs.sinks is not None
        inputs.sinks.fill_(sink)
        for engine in (portable, stock):
            assert_matches_reference(*engine.forward(problem, inputs), problem, inputs)
