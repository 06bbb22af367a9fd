"""Break each rule of the kernel in turn: a checker or the comparison with the oracle must notice.

A mutation replaces text of the MSL source on its way to the compiler. A test here fails when the
kernel with the broken rule still passes, or when the text to replace is no longer in the source.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

import metalsim
from flashmetal.testing import assert_matches_reference, make_inputs

from .simulated import checked, simulated_forward


class Mutation(NamedTuple):
    rule: str
    replace: str
    by: str
    case: dict[str, object]


BASE = {"seqlen_q": 40, "seqlen_k": 75, "heads_q": 2, "heads_k": 1, "head_dim": 32}
MUTATIONS = (
    Mutation(
        "causal is aligned bottom-right",
        "return k_length - q_length;",
        "return 0;",
        {"window_right": 0},
    ),
    Mutation(
        "the window is inclusive on the left",
        "-distance <= window_left;",
        "-distance < window_left;",
        {"window_left": 9},
    ),
    Mutation(
        "the window is inclusive on the right",
        "distance <= window_right;",
        "distance <= window_right + 1;",
        {"window_right": 3},
    ),
    Mutation(
        "keys past the end are masked",
        "row < q_length && key < k_length;",
        "row < q_length;",
        {},
    ),
    Mutation(
        "no visited block is skipped",
        "max(first_row + diagonal - window_left, begin)",
        "max(first_row + diagonal - window_left + STREAMED, begin)",
        {"window_left": 9},
    ),
    Mutation(
        "only whole blocks skip the mask",
        "last_key <= first_row + diagonal + window_right;",
        "first_key <= first_row + diagonal + window_right;",
        {"window_right": 0},
    ),
    Mutation(
        "sinks enter the denominator",
        "if (HAS_SINKS) return {operands.sinks[head] * M_LOG2E_F, 1.0f / float(threads_per_row)};",
        "",
        {"sinks": True},
    ),
    Mutation(
        "a sink counts once a row",
        "1.0f / float(threads_per_row)",
        "1.0f",
        {"sinks": True},
    ),
    Mutation(
        "softcap comes before the mask",
        ": MASKED_LOG2;\n        scores",
        ": rows.score(i).softcap_log2 * precise::tanh(MASKED_LOG2);\n        scores",
        {"softcap": 2.0, "window_right": 0},
    ),
    Mutation(
        "softcap works on natural-log scores",
        "precise::tanh(logit)",
        "precise::tanh(logit * M_LOG2E_F)",
        {"softcap": 2.0},
    ),
    Mutation(
        "the scale is applied",
        "float logit = product * multiplier;",
        "float logit = product * M_LOG2E_F;",
        {},
    ),
    Mutation(
        "a bias is in natural-log units",
        "M_LOG2E_F, logit);",
        "1.0f, logit);",
        {"bias": True},
    ),
    Mutation(
        "ALiBi measures from the diagonal",
        "abs(row + diagonal - key)",
        "abs(row - key)",
        {"alibi": True},
    ),
    Mutation("lse is a natural logarithm", "* M_LN2_F;", ";", {}),
    Mutation(
        "neighbouring query heads share a key head",
        "head / int(params.heads_per_kv_head);",
        "head % int(params.heads_q / params.heads_per_kv_head);",
        {"heads_q": 4, "heads_k": 2},
    ),
    Mutation(
        "the output is rescaled when the maximum grows",
        "output.scale_rows(i, softmax[i].rescale(row_max(block_max)));",
        "softmax[i].rescale(row_max(block_max));",
        {},
    ),
    Mutation(
        "rows past the end stage zeros",
        "if (row < valid) chunk",
        "chunk",
        {"seqlen_k": 33, "poison": True},
    ),
    Mutation(
        "a barrier between staging and reading",
        "if (STAGED) threadgroup_barrier(mem_flags::mem_threadgroup);",
        "",
        {},
    ),
    Mutation(
        "a barrier between reading and the next staging",
        "if (STAGED || TEAM > 1) threadgroup_barrier(mem_flags::mem_threadgroup);",
        "",
        {},
    ),
)


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.rule)
def test_broken_rule_turns_the_suite_red(mutation: Mutation) -> None:
    def compile_broken(source: str) -> metalsim.ShaderLibrary:
        assert mutation.replace in source, "the rule's text has changed: adapt this mutation"
        return checked(source.replace(mutation.replace, mutation.by))

    problem, inputs = make_inputs(**{**BASE, **mutation.case})
    try:
        with metalsim.schedule(seed=1):
            o, lse = simulated_forward(problem, inputs, compile_shader=compile_broken)
    except metalsim.CheckError:
        return  # red without a comparison
    with pytest.raises(AssertionError, match="is wrong at"):
        assert_matches_reference(o, lse, problem, inputs)


def test_unbroken_rules_are_green() -> None:
    for mutation in MUTATIONS:
        problem, inputs = make_inputs(**{**BASE, **mutation.case})
        assert_matches_reference(*simulated_forward(problem, inputs), problem, inputs)
