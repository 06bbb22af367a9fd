"""The comparison with the oracle can fail: each rule broken in turn turns it red."""

from __future__ import annotations

import pytest

from ..features import FEATURES, SHAPE
from .changes import BROKEN
from .processes import Processes
from .spread import Case, check


@pytest.mark.parametrize("rule", BROKEN)
def test_a_broken_rule_is_seen(processes: Processes, rule: str) -> None:
    _, attention, feature = BROKEN[rule]
    case = Case(
        attention, 4, "zigzag", {**SHAPE, **FEATURES[feature], "seqlen_q": 64, "seqlen_k": 80}
    )
    check(processes, case)
    with pytest.raises(AssertionError, match="is wrong at"):
        check(processes, case._replace(change=rule))


def test_tensors_that_their_backend_cannot_read_go_through_copies(processes: Processes) -> None:
    for attention in ("ring", "ulysses"):
        call = {**SHAPE, **FEATURES["varlen"], "sinks": True}
        check(processes, Case(attention, 4, "zigzag", call, "through copies"))
