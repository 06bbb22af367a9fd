"""The tests of the portable engine can fail: each rule broken in turn turns one of them red."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from flashmetal.engines import portable, sequences
from flashmetal.testing import assert_matches_reference, make_inputs

from ..features import FEATURES, SHAPE

Break = Callable[[pytest.MonkeyPatch], None]


def _top_left(monkeypatch: pytest.MonkeyPatch) -> None:
    class TopLeft(sequences.Band):
        def __new__(cls, diagonal: int, left: int, right: int) -> TopLeft:
            return super().__new__(cls, 0, left, right)

    monkeypatch.setattr(sequences, "Band", TopLeft)


def _wider_band(left: int, right: int) -> Break:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        class Wider(sequences.Band):
            def __new__(cls, diagonal: int, left_: int, right_: int) -> Wider:
                return super().__new__(cls, diagonal, left_ + left, right_ + right)

        monkeypatch.setattr(sequences, "Band", Wider)

    return apply


def _changed_call(change: Callable[[Any, Any], tuple[Any, Any]]) -> Break:
    """The engine serves another call than the one asked for."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        forward = portable.forward
        monkeypatch.setattr(portable, "forward", lambda p, x: forward(*change(p, x)))

    return apply


def _lse_in_log2(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = portable.forward

    def broken(problem: Any, inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        o, lse = forward(problem, inputs)
        return o, lse * math.log2(math.e)

    monkeypatch.setattr(portable, "forward", broken)


def _regrouped(problem: Any, inputs: Any) -> tuple[Any, Any]:
    order = [0, 2, 1, 3]
    return problem, inputs._replace(q=inputs.q[..., order, :])


BROKEN: dict[str, tuple[Break, str]] = {
    "top-left causal": (_top_left, "causal"),
    "top-left ALiBi": (_top_left, "alibi"),
    "right bound off by one": (_wider_band(0, 1), "window"),
    "left bound off by one": (_wider_band(1, 0), "window"),
    "sink ignored": (_changed_call(lambda p, x: (p, x._replace(sinks=None))), "sinks"),
    "softcap ignored": (_changed_call(lambda p, x: (p._replace(softcap=0.0), x)), "softcap"),
    "scale dropped": (_changed_call(lambda p, x: (p._replace(scale=1.0), x)), "plain"),
    "bias ignored": (_changed_call(lambda p, x: (p, x._replace(bias=None))), "bias"),
    "ALiBi ignored": (_changed_call(lambda p, x: (p, x._replace(alibi_slopes=None))), "alibi"),
    "lse in log2": (_lse_in_log2, "plain"),
    "GQA head order": (_changed_call(_regrouped), "plain"),
    "seqused_k ignored": (_changed_call(lambda p, x: (p, x._replace(seqused_k=None))), "seqused_k"),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_seen(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, feature = BROKEN[rule]
    problem, inputs = make_inputs(**{**SHAPE, **FEATURES[feature]})
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)
    apply(monkeypatch)
    with pytest.raises(AssertionError, match="is wrong at"):
        assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)
