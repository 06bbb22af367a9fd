"""The order in which threads run must not show: equal bits under every schedule."""

from __future__ import annotations

import pytest
import torch

import metalsim
from flashmetal.testing import assert_matches_reference, make_inputs

from .simulated import bits, simulated_forward

CASES = {
    "plain": {},
    "causal-gqa": {"window_right": 0, "heads_q": 4, "heads_k": 2},
    "window-sinks": {"window_left": 20, "window_right": 5, "sinks": True},
    "varlen": {"lengths_q": (5, 0, 33), "lengths_k": (40, 7, 64), "window_right": 0},
    "head-dim-256": {"head_dim": 256, "seqlen_q": 33, "seqlen_k": 40},
}


@pytest.mark.parametrize("kernel", ["tile", "scalar"])
@pytest.mark.parametrize("name", CASES)
def test_equal_bits_under_eight_schedules(name: str, kernel: str) -> None:
    shape = {"seqlen_q": 50, "seqlen_k": 70, "head_dim": 64}
    problem, inputs = make_inputs(**{**shape, **CASES[name]})
    o, lse = simulated_forward(problem, inputs, kernel=kernel)
    assert_matches_reference(o, lse, problem, inputs)
    for seed in range(1, 9):
        with metalsim.schedule(seed=seed):
            again = simulated_forward(problem, inputs, kernel=kernel)
        assert all(map(torch.equal, bits(o, lse), bits(*again))), f"seed {seed} differs"
