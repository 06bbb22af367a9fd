"""Ring and Ulysses over gloo processes against one machine's float64 oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ..features import FEATURES, SHAPE
from .processes import Processes
from .spread import Case, attend_to_share, check

REFUSED = {"alibi", "bias", "seqused_k"}
RING = [name for name, call in FEATURES.items() if not REFUSED & set(call)]
ULYSSES = ["batch", "sinks", "varlen", "window, more rows than keys", "alibi by batch", "no keys"]
GROUPS = {
    "two ranks": (2, "zigzag"),
    "two ranks, contiguous": (2, "contiguous"),
    "four ranks, contiguous": (4, "contiguous"),
}
LONG: dict[str, Any] = {"seqlen_q": 100, "seqlen_k": 100, "heads_q": 4, "heads_k": 2}


@pytest.mark.parametrize("feature", RING)
def test_ring(processes: Processes, feature: str) -> None:
    check(processes, Case("ring", 4, "zigzag", {**SHAPE, **FEATURES[feature]}))


@pytest.mark.parametrize("feature", ULYSSES)
def test_ulysses(processes: Processes, feature: str) -> None:
    check(processes, Case("ulysses", 4, "zigzag", {**SHAPE, **FEATURES[feature]}))


@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("feature", ["sinks", "varlen", "window"])
def test_other_groups_and_shardings(processes: Processes, feature: str, group: str) -> None:
    """Two ranks are one dimension of a mesh of four, whose other ranks do the same."""
    size, sharding = GROUPS[group]
    for attention in ("ring", "ulysses"):
        check(processes, Case(attention, size, sharding, {**SHAPE, **FEATURES[feature]}))


@pytest.mark.parametrize("feature", ["causal", "sinks", "varlen", "window"])
def test_calls_are_cut_along_their_rows(processes: Processes, feature: str) -> None:
    call = {**SHAPE, **FEATURES[feature]}
    check(processes, Case("ring", 2, "zigzag", call, "short calls"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("attention", ["ring", "ulysses"])
def test_half_types(processes: Processes, attention: str, dtype: torch.dtype) -> None:
    call = {**LONG, "dtype": dtype, "window_right": 0, "sinks": True}
    check(processes, Case(attention, 4, "zigzag", call))


def test_ulysses_has_double_precision(processes: Processes) -> None:
    call = {**SHAPE, "dtype": torch.float64, "window_right": 0}
    check(processes, Case("ulysses", 4, "zigzag", call))


@pytest.mark.parametrize("attention", ["ring", "ulysses"])
def test_fewer_rows_than_ranks(processes: Processes, attention: str) -> None:
    check(processes, Case(attention, 4, "zigzag", {**SHAPE, "seqlen_q": 3, "seqlen_k": 2}))


@pytest.mark.parametrize("attention", ["ring", "ulysses"])
def test_the_same_call_gives_the_same_bits(processes: Processes, attention: str) -> None:
    case = Case(attention, 4, "zigzag", {**SHAPE, **FEATURES["varlen"], "sinks": True})
    first, second = (processes.run(attend_to_share, case) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.o, other.o)
        assert torch.equal(one.lse, other.lse)
        assert all(torch.equal(x, other.grads[name]) for name, x in one.grads.items())
