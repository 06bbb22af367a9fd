"""The tests of the gradients can fail: each derivative rule broken in turn turns one red."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from flashmetal.engines import panels, portable, portable_backward
from flashmetal.gradients import Gradients, QueryRows
from flashmetal.testing import (
    assert_gradients_match_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from ..features import SHAPE, TRAINING

Break = Callable[[pytest.MonkeyPatch], None]


def _changed_call(change: Callable[[Any, Any, Any], tuple[Any, Any, Any]]) -> Break:
    """The backward of another (problem, inputs, grad_lse) than the one asked for."""

    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        backward = portable.backward

        def broken(problem: Any, inputs: Any, rows: QueryRows, wanted: Any) -> Any:
            problem, inputs, grad_lse = change(problem, inputs, rows.grad_lse)
            return backward(problem, inputs, rows._replace(grad_lse=grad_lse), wanted)

        monkeypatch.setattr(portable, "backward", broken)

    return apply


def _changed_result(name: str, change: Callable[[Any], Any]) -> Break:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        backward = portable.backward

        def broken(*arguments: Any) -> Gradients:
            found = backward(*arguments)
            return found._replace(**{name: change(getattr(found, name)).contiguous()})

        monkeypatch.setattr(portable, "backward", broken)

    return apply


def _no_softcap_slope(monkeypatch: pytest.MonkeyPatch) -> None:
    walk, original = portable_backward._Walk, portable_backward._Walk._probabilities
    monkeypatch.setattr(walk, "_probabilities", lambda *a: (original(*a)[0], None))


def _delta(factor: float) -> Break:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        row_terms = portable_backward.row_terms

        def broken(*arguments: Any) -> Any:
            rows = row_terms(*arguments)
            return rows._replace(delta=rows.delta * factor)

        monkeypatch.setattr(portable_backward, "row_terms", broken)

    return apply


def _first_panel_of_bias_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broadcast bias's gradient overwritten instead of summed over the rows of later blocks."""
    tiling = panels.Tiling(block_q=16, scores=1, least_keys=24)
    monkeypatch.setattr(panels, "tiling", lambda problem: tiling)
    walk, original = portable_backward._Walk, portable_backward._Walk._add_to_terms

    def broken(self: Any, grad_s: Any, row: int, key: int) -> None:
        if row == 0:
            original(self, grad_s, row, key)

    monkeypatch.setattr(walk, "_add_to_terms", broken)


def _other_mask(problem: Any, inputs: Any, grad_lse: Any) -> tuple[Any, Any, Any]:
    return problem, inputs._replace(rng_state=inputs.rng_state + 1), grad_lse


def _mean_of_the_group(grad: Any) -> Any:
    """The mean over the two query heads of a key head, in place of the sum."""
    return grad / 2


BROKEN: dict[str, tuple[Break, str]] = {
    "softcap without its slope": (_no_softcap_slope, "softcap"),
    "softcap of another cap": (
        _changed_call(lambda p, x, g: (p._replace(softcap=p.softcap * 2), x, g)),
        "softcap",
    ),
    "scale left out of dK": (_changed_result("k", lambda x: x / 0.7), "scale"),
    "scale left out of dQ": (_changed_result("q", lambda x: x / 0.7), "scale"),
    "no delta": (_delta(0.0), "plain"),
    "sink's sign": (_changed_result("sinks", torch.neg), "sinks"),
    "sink per row, not summed": (_changed_result("sinks", lambda x: x / 37), "sinks"),
    "gradient of lse left out": (_changed_call(lambda p, x, g: (p, x, None)), "plain"),
    "gradient of lse of the other sign": (_changed_call(lambda p, x, g: (p, x, -g)), "plain"),
    "bias of one block": (_first_panel_of_bias_only, "bias by row"),
    "GQA sum": (_changed_result("k", _mean_of_the_group), "plain"),
    "GQA sum of dV": (_changed_result("v", _mean_of_the_group), "plain"),
    "slopes' sign": (_changed_result("alibi_slopes", torch.neg), "alibi"),
    "dropout of another mask": (_changed_call(_other_mask), "dropout"),
    "dropout's scale": (_changed_result("v", lambda x: x * 0.8), "dropout"),
    "dropout left out": (
        _changed_call(lambda p, x, g: (p._replace(dropout_p=0.0), x, g)),
        "dropout",
    ),
    "mask left out": (_changed_call(lambda p, x, g: (p._replace(window_right=-1), x, g)), "causal"),
    "seqused_k ignored": (
        _changed_call(lambda p, x, g: (p._replace(seqused_k=False), x._replace(seqused_k=None), g)),
        "seqused_k",
    ),
}


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_seen(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    apply, feature = BROKEN[rule]
    problem, inputs = make_inputs(**{**SHAPE, **TRAINING[feature]})
    o, lse = portable.forward(problem, inputs)
    grads = make_output_gradients(o, lse)
    call = problem, inputs, QueryRows(o, lse, *grads), differentiable(inputs)
    assert_gradients_match_reference(portable.backward(*call), problem, inputs, *grads)
    apply(monkeypatch)
    with pytest.raises(AssertionError, match="is wrong at"):
        assert_gradients_match_reference(portable.backward(*call), problem, inputs, *grads)
