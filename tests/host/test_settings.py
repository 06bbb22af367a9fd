"""The environment chooses where a call says impl="auto"; like an argument it never falls back."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest
import torch

import flashmetal
from flashmetal.cache.append import AppendInputs, AppendRequest
from flashmetal.cache.ops import append_to_cache
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.plan import plan
from flashmetal.settings import Settings, settings
from flashmetal.testing import make_inputs

LENGTHS = torch.tensor([0, 3], dtype=torch.int32)


@pytest.fixture(autouse=True)
def read_anew() -> Iterator[None]:
    settings.cache_clear()
    yield
    settings.cache_clear()


@pytest.mark.parametrize("kernel", ["tensor", "simdgroup", "scalar", "decode"])
def test_a_kernel_is_taken_by_name(kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMETAL_KERNEL", kernel)
    problem, _ = make_inputs()
    with metal_runtime(Runtime(lambda source: None, "cpu", Gpu.named("M1"))):
        assert plan(problem)[:2] == ("metal", kernel)
        assert plan(problem, "portable").engine == "portable"
        with pytest.raises(NotImplementedError, match=r"float16 and bfloat16, not torch\.float64"):
            plan(problem._replace(dtype=torch.float64))
    with pytest.raises(NotImplementedError, match="no Metal runtime serves cpu tensors"):
        plan(problem)


def test_a_kernel_that_cannot_run_raises_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHMETAL_KERNEL", "decode")
    problem, _ = make_inputs(dropout_p=0.1)
    refused = pytest.raises(NotImplementedError, match="the decode kernel has no dropout")
    with metal_runtime(Runtime(lambda source: None, "cpu", Gpu.named("M1"))), refused:
        plan(problem)


def test_an_engine_is_taken_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, _ = make_inputs()
    assert plan(problem).engine == "stock"
    settings.cache_clear()
    monkeypatch.setenv("FLASHMETAL_IMPL", "portable")
    assert plan(problem).engine == "portable"


def test_the_reference_chosen_by_the_environment_gives_gradients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q, k, v = torch.randn(3, 1, 8, 2, 16).unbind()
    expected, actual = (
        torch.func.grad(lambda q: flashmetal.flash_attn_func(q, k, v, causal=True).sum())(q),
        q.clone().requires_grad_(),
    )
    monkeypatch.setenv("FLASHMETAL_IMPL", "reference")
    settings.cache_clear()
    flashmetal.flash_attn_func(actual, k, v, causal=True).sum().backward()
    assert torch.equal(actual.grad, expected)


@pytest.mark.parametrize("impl", ["portable", "stock"])
def test_an_engine_chosen_by_the_environment_is_not_replaced_by_the_reference(
    impl: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHMETAL_IMPL", impl)
    q, cache = torch.randn(1, 1, 2, 16, requires_grad=True), torch.randn(2, 8, 2, 16)
    table = torch.tensor([[0, 1]], dtype=torch.int32)
    refused = pytest.raises(NotImplementedError, match=f"impl='{impl}' cannot serve this call")
    with refused:
        flashmetal.flash_attn_with_kvcache(q, cache, cache, cache_seqlens=9, block_table=table)
    x = torch.randn(1, 8, 2, 16)
    call = partial(flashmetal.flash_attn_func, impl="auto")
    with pytest.raises(NotImplementedError, match=f"flash_attn_func: impl='{impl}' has no deriv"):
        torch.func.jvp(lambda x: call(x, x, x), (x,), (x,))


def test_an_append_has_the_engine_that_the_environment_chose(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FLASHMETAL_IMPL", "metal")
    cache = torch.zeros(2, 8, 1, 16)
    new = AppendInputs(None, *torch.randn(2, 2, 1, 1, 16), cache, cache.clone(), LENGTHS)
    with pytest.raises(NotImplementedError, match="impl='metal' cannot serve this append"):
        append_to_cache(new, AppendRequest("test"))
    assert not cache.any()


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ({"FLASHMETAL_IMPL": "cuda"}, "FLASHMETAL_IMPL must be one of auto, metal, .*got 'cuda'"),
        ({"FLASHMETAL_KERNEL": "tile"}, "FLASHMETAL_KERNEL must be one of tensor, simdgroup"),
        ({"FLASHMETAL_VERIFY": "no"}, "FLASHMETAL_VERIFY must be one of 0, 1, got 'no'"),
        (
            {"FLASHMETAL_IMPL": "stock", "FLASHMETAL_KERNEL": "scalar"},
            "FLASHMETAL_KERNEL needs FLASHMETAL_IMPL=metal, got 'stock'",
        ),
    ],
)
def test_a_value_that_means_nothing_is_an_error(
    names: dict[str, str], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=why):
        plan(make_inputs()[0])


def test_kernels_are_compared_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings() == Settings("auto", None, True)
    settings.cache_clear()
    monkeypatch.setenv("FLASHMETAL_VERIFY", "0")
    assert settings() == Settings("auto", None, False)
