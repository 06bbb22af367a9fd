"""Calls that are long, or odd in shape: cut launches, many tiny sequences, one kv head for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import product
from typing import Any
from unittest.mock import MagicMock, patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import metalsim
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, launch, metal_runtime
from flashmetal.engines.metal.backward import _launches as backward_launches
from flashmetal.engines.metal.decode import _launches as decode_launches
from flashmetal.engines.metal.forward import _launch as forward_launch
from flashmetal.engines.metal.launch import Addresses
from flashmetal.engines.metal.params import Geometry
from flashmetal.gradients import QueryRows
from flashmetal.testing import (
    assert_matches_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from .simulated import bits, simulated_forward

CUT: dict[str, tuple[dict[str, Any], str, str]] = {
    "causal": ({"window_right": 0, "batch": 2, "heads_q": 2}, "simdgroup", "M1"),
    "packed": ({"lengths_q": (100, 3), "lengths_k": (100, 60)}, "simdgroup", "M3"),
    "tensor": ({"window_left": 40, "window_right": 3, "bias": True}, "tensor", "M5"),
    "decode": ({"batch": 2, "heads_q": 20, "heads_k": 2, "seqlen_q": 2}, "decode", "M1"),
    "scalar": ({"batch": 2, "heads_q": 2}, "scalar", "M1"),
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
            o, lse = metal.forward(problem._replace(num_splits=2), inputs, kernel=kernel)
            rows = QueryRows(o, lse, *make_output_gradients(o, lse))
            gradients: Sequence[torch.Tensor | None] = ()
            if kernel in ("simdgroup", "tensor"):
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


def test_every_threadgroup_is_in_one_part_of_a_cut_launch() -> None:
    for groups in ((7, 3, 2), (1, 5, 4), (64, 1, 1)):
        for most in (1, 2, 5, 6, 12, 41, 64, 1000):
            parts = list(launch._parts(groups, most))
            assert all(math.prod(count) <= most for _, count in parts)
            places = [
                tuple(f + i for f, i in zip(first, inside, strict=True))
                for first, count in parts
                for inside in product(*map(range, count))
            ]
            assert sorted(places) == sorted(product(*map(range, groups)))
            assert len(parts) == 1 or most < math.prod(groups)


@settings(max_examples=3 * settings().max_examples)
@given(
    lengths=st.lists(st.integers(0, 700), min_size=1, max_size=12),
    heads=st.integers(1, 5),
    most=st.integers(1, 90),
    longer=st.integers(0, 40),
)
def test_parts_of_a_packed_batch_hold_to_the_bound(
    lengths: list[int], heads: int, most: int, longer: int
) -> None:
    owned = 32
    blocks = [-(-length // owned) for length in lengths]
    groups = max(*blocks, 1) + longer, heads, len(lengths)
    parts = list(launch._packed_parts(groups, most, sum(lengths) // owned))
    places = [
        tuple(f + i for f, i in zip(first, inside, strict=True))
        for first, count in parts
        for inside in product(*map(range, count))
    ]
    assert sorted(places) == sorted(product(*map(range, groups)))
    for first, count in parts:
        sequences = blocks[first[2] : first[2] + count[2]]
        found = [min(max(n - first[0], 0), count[0]) for n in sequences]
        assert sum(found) * count[1] <= max(most, 1)


PACKED = {
    "one long of 256": ([8] * 255 + [32768], 32768, 130),
    "one long of 64": ([100] * 63 + [8192], 8192, 5),
    "short ones, said to be long": ([512] * 64, 131_072, 100),
}


@pytest.mark.parametrize("call", PACKED)
def test_a_ragged_batch_takes_few_launches(call: str) -> None:
    lengths, longest, launches = PACKED[call]
    problem = make_inputs(head_dim=128, dtype=torch.float16, lengths_q=[1], lengths_k=[1])[0]
    problem = problem._replace(
        batch=len(lengths), seqlen_q=longest, seqlen_k=longest, heads_q=32, heads_k=8
    )
    strides, rows = (1, 1, 1), sum(lengths)
    geometry = Geometry(strides, strides, strides, None, rows, grad_o=strides, rows_k=rows)
    runtime = Runtime(lambda source: MagicMock(), "cpu", Gpu.named("M1"))
    made = forward_launch(problem, geometry, Addresses(0, 0, 0), "simdgroup", runtime, ())
    assert len(made.parts) <= launches
    both = backward_launches(
        problem, geometry, 0, (False, False), ("q", "k"), runtime, "simdgroup", ()
    )
    assert all(len(each.parts) <= 5 * launches for each in both)


@pytest.mark.parametrize("kernel", ["simdgroup", "scalar", "decode"])
def test_no_launch_of_a_long_call_goes_beyond_the_bound(kernel: str) -> None:
    """Many heads over one long cache: a block of rows in all of them alone would be too much."""
    rows, sizes = 8 if kernel == "decode" else 1024, {"head_dim": 128, "dtype": torch.float16}
    problem = make_inputs(**sizes)[0]._replace(
        batch=64, seqlen_q=rows, seqlen_k=131_072, heads_q=128, heads_k=8
    )
    strides = (1, 1, 1, 1)
    geometry, addresses = Geometry(strides, strides, strides, None, rows), Addresses(0, 0, 0)
    runtime = Runtime(lambda source: MagicMock(), "cpu", Gpu.named("M1"))
    if kernel == "decode":
        (made,), splits = decode_launches(problem, geometry, addresses, runtime, print, ())
        assert splits == 1
    else:
        made = forward_launch(problem, geometry, addresses, kernel, runtime, ())
    owned = {"simdgroup": 32, "scalar": 64, "decode": 8}[kernel]
    for _, threads in made.parts:
        groups = math.prod(threads) // made.group_size[0]
        assert 2 * groups * owned * 131_072 * 128 <= 8 * launch.WORK_PER_CORE
    everything = sum(math.prod(threads) for _, threads in made.parts) // made.group_size[0]
    assert everything * owned == 64 * 128 * rows


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
