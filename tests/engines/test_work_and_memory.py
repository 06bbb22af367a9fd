"""Memory is linear in the sequence and work is that of the visible band: counted, not timed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flashmetal.engines import panels, portable, stock
from flashmetal.gradients import QueryRows
from flashmetal.testing import differentiable, make_inputs

from ..operations import Operations

SHAPE: dict[str, Any] = {"heads_q": 2, "heads_k": 1, "head_dim": 16}
SMALL_TILES = panels.Tiling(block_q=64, scores=1 << 14, least_keys=32)


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panels, "tiling", lambda problem: SMALL_TILES)


def largest(engine: Any, seqlen: int, **features: Any) -> int:
    problem, inputs = make_inputs(**{**SHAPE, **features, "seqlen_q": seqlen})
    with Operations() as mode:
        engine.forward(problem, inputs)
    return mode.largest


def scores(**call: Any) -> int:
    problem, inputs = make_inputs(**{**SHAPE, **call})
    with Operations() as mode:
        portable.forward(problem, inputs)
    return mode.scores


@pytest.mark.parametrize(
    "features",
    [{}, {"window_right": 0, "softcap": 2.0, "alibi": True, "sinks": True}, {"window_left": 40}],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_linear_in_the_sequence(dtype: torch.dtype, features: dict[str, Any]) -> None:
    for seqlen in (512, 1024):
        assert largest(portable, seqlen, dtype=dtype, **features) <= 2 * 16 * seqlen


def test_memory_beside_the_results_does_not_grow_in_a_window() -> None:
    """Keys are 32 times as long as values: a copy of all in float32 would be the largest."""
    call = {"head_dim": 64, "head_dim_v": 2, "window_left": 40, "window_right": 0, "sinks": True}
    for seqlen in (1024, 4096):
        assert largest(portable, seqlen, dtype=torch.float16, **call) <= 2 * SMALL_TILES.scores


@pytest.mark.parametrize("window_right", [-1, 0])
def test_stock_makes_no_matrix_of_scores(window_right: int) -> None:
    assert largest(stock, 2048, window_right=window_right) <= 2 * 16 * 2048


def test_grouped_heads_copy_no_keys() -> None:
    shape = {"heads_q": 16, "heads_k": 1, "head_dim": 64, "seqlen_k": 2048}
    for engine in (portable, stock):
        problem, inputs = make_inputs(seqlen_q=1, **shape)
        with Operations() as mode:
            engine.forward(problem, inputs)
        assert mode.largest <= inputs.k.numel()


def test_work_is_that_of_the_band() -> None:
    full = 2 * 1024**2
    assert scores(seqlen_q=1024) == full
    # Sixteen blocks of 64 rows: the last meets 1024 keys, the first 64.
    assert scores(seqlen_q=1024, window_right=0) == full * 17 // 32
    # A block of 64 rows meets the 64 keys of its own rows and 31 before them.
    assert scores(seqlen_q=1024, window_left=31, window_right=0) == 2 * (1024 * 95 - 64 * 31)
    assert scores(seqlen_q=64, seqlen_k=1024, window_left=0, window_right=0) == 2 * 64 * 64


def test_work_of_a_packed_batch_is_that_of_its_sequences() -> None:
    lengths = (700, 30, 0, 5)
    assert scores(lengths_q=lengths) == 2 * sum(length**2 for length in lengths)


@pytest.mark.parametrize(
    "features",
    [
        {},
        {"window_right": 0, "softcap": 2.0, "alibi": True, "sinks": True},
        {"window_left": 40},
        {"dropout_p": 0.2},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_of_the_backward_is_linear_in_the_sequence(
    dtype: torch.dtype, features: dict[str, Any]
) -> None:
    for seqlen in (512, 1024):
        problem, inputs = make_inputs(**{**SHAPE, **features, "seqlen_q": seqlen}, dtype=dtype)
        o, lse = portable.forward(problem, inputs)
        call = problem, inputs, QueryRows(o, lse, torch.ones_like(o)), differentiable(inputs)
        with Operations() as mode:
            portable.backward(*call)
        assert mode.largest <= 2 * 16 * seqlen


def test_work_of_the_backward_is_that_of_the_band() -> None:
    """Two products of scores a panel, in the panels that the forward visits."""
    for features in ({}, {"window_right": 0}, {"window_left": 31, "window_right": 0}):
        problem, inputs = make_inputs(**{**SHAPE, **features, "seqlen_q": 1024})
        o, lse = portable.forward(problem, inputs)
        with Operations() as mode:
            portable.backward(problem, inputs, QueryRows(o, lse, o), ("q", "k", "v"))
        assert mode.scores == 2 * scores(seqlen_q=1024, **features)
