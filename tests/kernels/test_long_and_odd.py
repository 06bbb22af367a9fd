"""Calls that are long, or odd in shape: cut launches, many tiny sequences, one kv head for all."""

from __future__ import annotations

import math
from typing import Any
from unittest.mock import patch

import pytest
import torch

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, launch, metal_runtime
from flashmetal.gradients import QueryRows
from flashmetal.testing import (
    assert_matches_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from .simulated import bits, simulated_forward

CUT: dict[str, tuple[dict[str, Any], str, str]] = {
    "causal": ({"window_right": 0}, "simdgroup", "M1"),
    "packed": ({"lengths_q": (100, 3), "lengths_k": (100, 60)}, "simdgroup", "M3"),
    "tensor": ({"window_left": 40, "window_right": 3, "bias": True}, "tensor", "M5"),
}


@pytest.mark.parametrize("call", CUT)
def test_a_cut_launch_gives_the_bits_of_a_whole_one(call: str) -> None:
    fields, kernel, gpu = CUT[call]
    problem, inputs = make_inputs(
        **{"seqlen_q": 100, "seqlen_k": 100, "heads_q": 1, "head_dim": 32, **fields}
    )
    results: list[list[torch.Tensor]] = []
    launches: list[int] = []
    for most in (launch.WORK_PER_CORE, 1):
        ran: list[str] = []
        with (
            patch.object(launch, "WORK_PER_CORE", most),
            metal_runtime(Runtime(noting(ran), "cpu", Gpu.named(gpu))),
        ):
            o, lse = metal.forward(problem, inputs, kernel=kernel)
            rows = QueryRows(o, lse, *make_output_gradients(o, lse))
            gradients = metal.backward(problem, inputs, rows, differentiable(inputs), kernel)
        results.append([x for x in (o, lse, *gradients) if x is not None])
        launches.append(len([name for name in ran if name != "cooperative_probe"]))
    assert launches[1] > 2 * launches[0]
    assert all(map(torch.equal, bits(*results[0]), bits(*results[1])))


def noting(ran: list[str]) -> Any:
    """A compile_shader whose kernels leave their names in `ran`."""

    class Noting:
        def __init__(self, source: str) -> None:
            self._library = metalsim.compile_shader(source)

        def __getattr__(self, name: str) -> Any:
            kernel = getattr(self._library, name)

            def run(*arguments: object, **options: Any) -> None:
                ran.append(name)
                kernel(*arguments, **options)

            return run

    return Noting


def test_4096_sequences_of_no_to_seven_rows() -> None:
    lengths = [(7 * i) % 8 for i in range(4096)]
    keys = [(5 * i + 3) % 8 for i in range(4096)]
    problem, inputs = make_inputs(
        lengths_q=lengths, lengths_k=keys, heads_q=2, heads_k=1, head_dim=16, window_right=0
    )
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", Gpu.named("M1"))):
        o, lse = metal.forward(problem, inputs)
    assert_matches_reference(o, lse, problem, inputs)


@pytest.mark.parametrize("kernel", ["simdgroup", "decode"])
def test_128_heads_over_one(kernel: str) -> None:
    rows = 1 if kernel == "decode" else 4
    problem, inputs = make_inputs(
        seqlen_q=rows, seqlen_k=20, heads_q=128, heads_k=1, head_dim=32, dtype=torch.float16
    )
    assert_matches_reference(*simulated_forward(problem, inputs, kernel=kernel), problem, inputs)


@pytest.mark.parametrize("kernel", ["simdgroup", "tensor", "scalar"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_masked_keys_do_not_leak(poison: float, kernel: str) -> None:
    problem, inputs = make_inputs(
        seqlen_q=40, seqlen_k=80, head_dim=32, window_left=5, window_right=5, sinks=True
    )
    right = simulated_forward(problem, inputs, gpu="M5", kernel=kernel)
    # Row i stands at key i + 40: no window reaches the first keys.
    for x in (inputs.k, inputs.v):
        x[:, :30] = poison
    poisoned = simulated_forward(problem, inputs, gpu="M5", kernel=kernel)
    assert all(map(torch.equal, bits(*right), bits(*poisoned)))


@pytest.mark.long
def test_131072_rows_through_a_window() -> None:
    problem, inputs = make_inputs(
        seqlen_q=131_072,
        heads_q=1,
        head_dim=64,
        window_left=128,
        window_right=0,
        sinks=True,
        dtype=torch.float16,
    )
    with metal_runtime(Runtime(metalsim.compile_shader, "cpu", Gpu.named("M1"))):
        o, lse = metal.forward(problem, inputs)
    # The last rows alone have the same answer: what they see is among the last keys.
    tail = inputs._replace(q=inputs.q[:, -200:], k=inputs.k[:, -400:], v=inputs.v[:, -400:])
    short = problem._replace(seqlen_q=200, seqlen_k=400)
    assert_matches_reference(o[:, -200:].contiguous(), lse[..., -200:], short, tail)
