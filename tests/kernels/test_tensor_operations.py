"""The tiles on Metal 4's tensor operations: every feature, and every layout that Metal allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import cycle
from typing import Any

import pytest
import torch

import metalsim
from flashmetal import flash_attn_func
from flashmetal.engines import metal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.engines.metal.cooperative import layout_of
from flashmetal.gradients import QueryRows
from flashmetal.plan import plan
from flashmetal.problem import allows_tf32
from flashmetal.testing import (
    assert_gradients_match_reference,
    assert_matches_reference,
    differentiable,
    make_inputs,
    make_output_gradients,
)

from ..features import CACHES, DROPOUT, FEATURES, SHAPE, TRAINING, in_turn
from .simulated import bits, runtime

BACKENDS: Any = torch.backends  # its newer names are not in torch's annotations
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
CALLS = FEATURES | CACHES | DROPOUT
# The lowest two bits of a random layout's seed say whether operands agree in layout, and whether
# mode::multiply adds to what it finds.
LAYOUTS = ("apple10", "older", "random:0", "random:1", "random:2", "random:3")


def check(call: dict[str, Any], layout: str = "apple10") -> None:
    problem, inputs = make_inputs(**call)
    with metal_runtime(runtime("M5", layout)):
        o, lse = metal.forward(problem, inputs, kernel="tensor")
    assert_matches_reference(o, lse, problem, inputs)


def check_gradients(call: dict[str, Any], layout: str = "apple10") -> None:
    problem, inputs = make_inputs(**call)
    with metal_runtime(runtime("M5", layout)):
        o, lse = metal.forward(problem, inputs, kernel="tensor")
        grads = make_output_gradients(o, lse)
        rows, wanted = QueryRows(o, lse, *grads), differentiable(inputs)
        found = metal.backward(problem, inputs, rows, wanted, kernel="tensor")
    assert_gradients_match_reference(found, problem, inputs, *grads)


@pytest.fixture
def precision() -> Iterator[Callable[[str], None]]:
    before = torch.get_float32_matmul_precision()
    yield torch.set_float32_matmul_precision
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(("feature", "dtype"), in_turn(CALLS, DTYPES, list(CALLS)[::3]))
def test_feature(feature: str, dtype: torch.dtype) -> None:
    check({**SHAPE, **CALLS[feature], "dtype": dtype})


TRAINED = (
    *("bias", "alibi by batch", "left padding, everything", "odd dimension"),
    *("dropout, packed", "everything, packed"),
)


@pytest.mark.parametrize(("feature", "dtype"), in_turn(TRAINING, DTYPES, TRAINED))
def test_gradients_of_a_feature(feature: str, dtype: torch.dtype) -> None:
    check_gradients({**SHAPE, **TRAINING[feature], "dtype": dtype})


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(layout: str) -> None:
    call = {**SHAPE, "window_right": 0, "head_dim": 40, "head_dim_v": 72, "dtype": torch.float16}
    check(call, layout)
    check({**call, "dtype": torch.float32}, layout)
    if layout in ("older", "random:1"):
        check_gradients(call, layout)


DIMS = [(1, 33), (80, 80), (128, 128), (192, 128), (256, 256), (576, 512)]


@pytest.mark.parametrize(("dims", "dtype"), list(zip(DIMS, cycle(DTYPES), strict=False)), ids=str)
def test_head_dims(dims: tuple[int, int], dtype: torch.dtype) -> None:
    call = {**SHAPE, "head_dim": dims[0], "head_dim_v": dims[1], "dtype": dtype}
    check(call)


@pytest.mark.parametrize(
    ("dims", "dtype"), in_turn(DIMS[:-1], DTYPES, short=((1, 33), (192, 128), (256, 256)))
)
def test_gradients_at_head_dims(dims: tuple[int, int], dtype: torch.dtype) -> None:
    check_gradients({**SHAPE, "head_dim": dims[0], "head_dim_v": dims[1], "dtype": dtype})


def test_the_layout_is_asked_of_the_gpu() -> None:
    for layout, told in (("apple10", "apple10"), ("older", "older"), ("random:0", "unknown")):
        assert layout_of(runtime("M5", layout), torch.float16) == told


def test_auto_takes_tensor_operations_where_they_pay() -> None:
    problem, _ = make_inputs(**SHAPE, dtype=torch.float16)
    for gpu, layout, kernel in (
        ("M5", "apple10", "tensor"),
        ("M5", "random:0", "simdgroup"),
        ("M4", "apple10", "simdgroup"),
    ):
        with metal_runtime(runtime(gpu, layout)):
            assert plan(problem, "metal").kernel == kernel
    old = Runtime(metalsim.compile_shader, "cpu", Gpu.named("M5"), has_tensor_operations=False)
    with metal_runtime(old):
        assert plan(problem, "metal").kernel == "simdgroup"
        with pytest.raises(NotImplementedError, match=r"tensor operations need .*macOS 26\.2"):
            plan(problem, "metal", "tensor")


def test_auto_multiplies_floats_with_tensor_operations_only_as_tf32() -> None:
    problem, _ = make_inputs(**SHAPE)
    with metal_runtime(runtime("M5", "apple10")):
        exact = plan(problem, "metal")
        assert exact.kernel == "simdgroup"
        (kernel, *_), refusals = metal.kernels_for(problem)
        assert kernel == "simdgroup"
        assert "set_float32_matmul_precision" in dict(refusals)["tensor"]
        assert plan(problem._replace(tf32=True), "metal").kernel == "tensor"


@pytest.mark.parametrize("layout", ["apple10", "random:1"])
def test_tf32(layout: str) -> None:
    """Its errors are those of operands cut to TF32, and no exact kernel's."""
    problem, inputs = make_inputs(**SHAPE, window_right=0)
    relaxed = problem._replace(tf32=True)
    with metal_runtime(runtime("M5", layout)):
        o, lse = metal.forward(relaxed, inputs, kernel="tensor")
        assert_matches_reference(o, lse, relaxed, inputs)
        with pytest.raises(AssertionError, match="o is wrong"):
            assert_matches_reference(o, lse, problem, inputs)
        grads = make_output_gradients(o, lse)
        rows, wanted = QueryRows(o, lse, *grads), differentiable(inputs)
        found = metal.backward(relaxed, inputs, rows, wanted, kernel="tensor")
    assert_gradients_match_reference(found, relaxed, inputs, *grads)
    with pytest.raises(AssertionError, match="the gradient of q is wrong"):
        assert_gradients_match_reference(found, problem, inputs, *grads)


def test_tf32_is_asked_for_by_torchs_own_switch(precision: Callable[[str], None]) -> None:
    problem, inputs = make_inputs(**SHAPE)
    outputs: dict[str, torch.Tensor] = {}
    with metal_runtime(runtime("M5", "apple10")):
        for name in ("highest", "high", "medium"):
            precision(name)
            q, k, v = inputs[:3]
            outputs[name] = flash_attn_func(q, k, v, impl="metal", kernel="tensor")
        exact, _ = metal.forward(problem, inputs, kernel="tensor")
        cut, _ = metal.forward(problem._replace(tf32=True), inputs, kernel="tensor")
    assert torch.equal(outputs["high"], cut)
    assert torch.equal(outputs["medium"], cut)
    assert torch.equal(outputs["highest"], exact)
    assert not torch.equal(exact, cut)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 has it")
def test_torchs_newer_name_may_forbid_tf32(precision: Callable[[str], None]) -> None:
    precision("high")
    assert allows_tf32()
    with BACKENDS.flags(fp32_precision="ieee"):
        assert not allows_tf32()


def test_no_switch_loosens_a_budget(precision: Callable[[str], None]) -> None:
    precision("high")
    assert not make_inputs(**SHAPE)[0].tf32


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 has it")
def test_tf32_for_another_backend_alone_is_not_asked_for_here() -> None:
    """torch's question raises then."""
    products = BACKENDS.mkldnn.matmul
    before = products.fp32_precision
    products.fp32_precision = "tf32"
    try:
        with pytest.raises(RuntimeError):
            torch.get_float32_matmul_precision()
        assert not allows_tf32()
    finally:
        products.fp32_precision = before


def test_two_runs_give_equal_bits() -> None:
    problem, inputs = make_inputs(**{**SHAPE, **FEATURES["everything, packed"]})
    with metal_runtime(runtime("M5", "apple10")):
        first, second = (metal.forward(problem, inputs, kernel="tensor") for _ in range(2))
    assert all(map(torch.equal, bits(*first), bits(*second)))
