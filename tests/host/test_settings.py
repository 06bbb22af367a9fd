"""The environment chooses where a call says impl="auto"; like an argument it never falls back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from flashmetal.engines.metal import Gpu, Runtime, metal_runtime
from flashmetal.plan import plan
from flashmetal.settings import Settings, settings
from flashmetal.testing import make_inputs


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
