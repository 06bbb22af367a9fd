"""Each rule of caches and of gradients, broken in a kernel's source, turns the suite red: by what a
checker finds, or else by the comparison with the oracle."""

from __future__ import annotations

from contextlib import suppress
from typing import Any, NamedTuple

import pytest

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.gradients import QueryRows
from flashmetal.testing import (
    assert_gradients_match_reference,
    assert_matches_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from ..features import SHAPE
from .simulated import checked, runtime, simulated_forward


class Mutation(NamedTuple):
    rule: str
    replace: str
    by: str
    case: dict[str, object]


PAGES = {"page_size": 8, "batch": 2}
CACHES = (
    Mutation("a key's row on its page", "key % PAGE_SIZE", "0", PAGES),
    Mutation(
        "left padding is hidden",
        "if (HAS_LEFTPAD_K && key < k_hidden) return -1;",
        "",
        {"batch": 2, "leftpad_k": (0, 9)},
    ),
    Mutation("a group shares its keys", "head_k * GROUP + row % GROUP", "head_k * GROUP", {}),
    Mutation(
        "shares are weighed", "const float theirs = fast::exp2(", "const float theirs = (", {}
    ),
    Mutation("splits are weighed", "exp(lse - reference)", "1.0f", {}),
    Mutation(
        "each split has its own keys",
        "first = key_begin + split * share;",
        "first = key_begin;",
        {},
    ),
    Mutation("a sink counts in one share", "split == 0 && team == 0", "true", {"sinks": True}),
    Mutation(
        "int4 codes are signed", "& 15) - 8)", "& 15))", {"k_format": "int4", "v_format": "int4"}
    ),
    Mutation(
        "the earlier of two int4 is the low nibble",
        "d % 2 * 4",
        "(1 - d % 2) * 4",
        {"k_format": "int4", "v_format": "int4"},
    ),
    Mutation(
        "fp8's exponent is biased by 7",
        "* 256.0f",
        "* 128.0f",
        {"k_format": "fp8", "v_format": "fp8"},
    ),
)
GRADIENTS = (
    Mutation(
        "softcap has a derivative",
        "return 1.0f - capped * capped;",
        "return 1.0f;",
        {"softcap": 1.0},
    ),
    Mutation("lse has a gradient", "if (HAS_GRAD_LSE) sum -= operands.grad_lse[index];", "", {}),
    Mutation("dS has delta", " - statistics.delta)", ")", {}),
    Mutation("the scale is in dQ and dK", "scalars.scale, lane", "1.0f, lane", {}),
    Mutation(
        "a kv head has all its query heads",
        "head < (head_k + 1) * group",
        "head < head_k * group + 1",
        {},
    ),
    Mutation("dropout scales dP", "grad_p * dropout_weight", "grad_p", {"dropout_p": 0.3}),
    Mutation("dropout is in dV", "return {p * dropout_weight,", "return {p,", {"dropout_p": 0.3}),
    Mutation(
        "a bias sums over the batch",
        "params.bias_batches == 1 ? int(params.batch) - 1",
        "params.bias_batches == 1 ? own_batch",
        {"batch": 2, "bias": (True, False, True)},
    ),
    Mutation(
        "a bias of one row sums over rows",
        "one_row ? sequence.q_length",
        "one_row ? min(OWNED, sequence.q_length)",
        {"bias": (False, False, True)},
    ),
    Mutation(
        "rows before the window's first see no key",
        "max(first_key - diagonal - window_right",
        "max(first_key - diagonal + window_right + STREAMED",
        {"window_right": 0},
    ),
    Mutation(
        "slopes multiply distances",
        "distances[i] += pair.grad_logit * ",
        "distances[i] += pair.grad_logit + ",
        {"alibi": True},
    ),
)


def broken(mutation: Mutation, changed: list[str]) -> Any:
    def compile_broken(source: str) -> metalsim.ShaderLibrary:
        if mutation.replace in source:
            changed.append(mutation.rule)
        return checked(source.replace(mutation.replace, mutation.by))

    return compile_broken


@pytest.mark.parametrize("mutation", CACHES, ids=lambda mutation: mutation.rule)
def test_broken_cache_rule(mutation: Mutation) -> None:
    changed: list[str] = []
    problem, inputs = make_inputs(**{**SHAPE, "seqlen_q": 3, **mutation.case})
    problem = problem._replace(num_splits=2)
    results = None
    with suppress(metalsim.CheckError):
        results = simulated_forward(
            problem, inputs, kernel="decode", compile_shader=broken(mutation, changed)
        )
    assert changed, "the rule's text has changed: adapt this mutation"
    if results is not None:
        with pytest.raises(AssertionError, match="is wrong at"):
            assert_matches_reference(*results, problem, inputs)


@pytest.mark.parametrize("mutation", GRADIENTS, ids=lambda mutation: mutation.rule)
def test_broken_gradient_rule(mutation: Mutation) -> None:
    changed: list[str] = []
    problem, inputs = make_inputs(**{**SHAPE, **mutation.case})
    with metal_runtime(runtime()):
        o, lse = metal.forward(problem, inputs)
    grads = make_output_gradients(o, lse)
    rows, found = QueryRows(o, lse, *grads), None
    runtime_of_broken = Runtime(broken(mutation, changed), "cpu", Gpu.named("M1"))
    with metal_runtime(runtime_of_broken), suppress(metalsim.CheckError):
        found = metal.backward(problem, inputs, rows, differentiable(inputs))
    assert changed, "the rule's text has changed: adapt this mutation"
    if found is not None:
        with pytest.raises(AssertionError, match="is wrong at"):
            assert_gradients_match_reference(found, problem, inputs, *grads)
