"""The Metal kernels on an NVIDIA GPU, by metalsim's second engine: every kernel and feature against
the float64 oracle, within the budget of all engines."""

from __future__ import annotations

from functools import cache
from itertools import cycle
from typing import Any

import pytest
import torch

import metalsim
from flashmetal.cache.testing_append import copied, make_append
from flashmetal.engines import append as portable
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

from ..features import CACHES, FEATURES, SHAPE, TRAINING
from .simulated import TILE_GPUS, bits
from .test_append import CASES, written

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
CALLS = FEATURES | CACHES
HEAD_DIMS = (1, 20, 64, 72, 128, 192, 256)


@cache
def runtime(gpu: str) -> Runtime:
    """One runtime a chip, so that variants are loaded once a process."""

    def compile_shader(source: str) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(source, engine="cuda")

    return Runtime(compile_shader, "cuda", Gpu.named(gpu))


def check_forward(call: dict[str, Any], kernel: str, gpu: str = "M1", splits: int = 0) -> None:
    problem, inputs = make_inputs(**{**call, "device": "cuda"})
    problem = problem._replace(num_splits=splits)
    with metal_runtime(runtime(gpu)):
        o, lse = metal.forward(problem, inputs, kernel=kernel)
    assert_matches_reference(o, lse, problem, inputs)


def check_backward(call: dict[str, Any], gpu: str = "M1") -> None:
    problem, inputs = make_inputs(**{**call, "device": "cuda"})
    with metal_runtime(runtime(gpu)):
        o, lse = metal.forward(problem, inputs)
        gradients = make_output_gradients(o, lse)
        wanted = differentiable(inputs)
        found = metal.backward(problem, inputs, QueryRows(o, lse, *gradients), wanted)
    assert_gradients_match_reference(found, problem, inputs, *gradients)


@pytest.mark.parametrize("kernel", ["simdgroup", "scalar", "decode", "tensor"])
@pytest.mark.parametrize(
    ("feature", "dtype"), list(zip(CALLS, cycle(DTYPES), strict=False)), ids=str
)
def test_forward(feature: str, dtype: torch.dtype, kernel: str) -> None:
    splits = 3 if kernel == "decode" else 0
    gpu = "M5" if kernel == "tensor" else "M1"
    check_forward({**SHAPE, **CALLS[feature], "dtype": dtype}, kernel, gpu, splits)


@pytest.mark.parametrize("gpu", TILE_GPUS)
@pytest.mark.parametrize(
    ("head_dim", "dtype"), list(zip(HEAD_DIMS, cycle(DTYPES), strict=False)), ids=str
)
def test_head_dim(head_dim: int, dtype: torch.dtype, gpu: str) -> None:
    call = {**SHAPE, "head_dim": head_dim, "window_right": 0, "dtype": dtype}
    check_forward(call, "simdgroup", gpu)
    check_backward(call, gpu)


@pytest.mark.parametrize(
    ("feature", "dtype"), list(zip(TRAINING, cycle(DTYPES), strict=False)), ids=str
)
def test_backward(feature: str, dtype: torch.dtype) -> None:
    check_backward({**SHAPE, **TRAINING[feature], "dtype": dtype})


@pytest.mark.parametrize(("case", "dtype"), list(zip(CASES, cycle(DTYPES), strict=False)), ids=str)
def test_append(case: str, dtype: torch.dtype) -> None:
    """To the bit, as in the simulator."""
    problem, expected = make_append(dtype=dtype, **CASES[case])
    found = copied(expected)
    found = found._make(None if x is None else x.cuda() for x in found)
    q = portable.append(problem, expected)
    with metal_runtime(runtime("M1")):
        q_found = metal.append(problem._replace(device="cuda"), found)
    for x, y in zip(written(found, q_found), written(expected, q), strict=True):
        assert all(map(torch.equal, bits(x.cpu()), bits(y)))


def test_two_runs_give_equal_bits() -> None:
    problem, inputs = make_inputs(**{**SHAPE, "device": "cuda"}, dtype=torch.float16)
    with metal_runtime(runtime("M1")):
        first, second = (metal.forward(problem, inputs) for _ in range(2))
    assert all(map(torch.equal, bits(*first), bits(*second)))
