"""PyTorch's own samples of scaled_dot_product_attention, with flashmetal installed.

They come from the entry of the operator in torch's table of tests (OpInfo), as do the checks:
values against an exact run, inputs of any strides, and derivatives against differences.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flashmetal.integrations import sdpa
from flashmetal.testing import error_budget


@pytest.fixture(scope="module")
def operator() -> Any:
    """The entry; its table takes seconds to import, which only the tests here are to pay."""
    from torch.testing._internal.common_methods_invocations import op_db

    return next(x for x in op_db if x.name == "nn.functional.scaled_dot_product_attention")


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with sdpa.installed(devices=("cpu",), always=True):
        yield


def samples(operator: Any, dtype: torch.dtype, requires_grad: bool = False) -> list[Any]:
    """One sample of each kind: the table repeats them for options that it does not pass on."""
    kept: dict[str, Any] = {}
    for sample in operator.sample_inputs("cpu", dtype, requires_grad=requires_grad):
        shapes = [tuple(x.shape) for x in (sample.input, *sample.args)]
        options = {k: v for k, v in sample.kwargs.items() if not isinstance(v, Tensor)}
        kept.setdefault(f"{shapes} {options} {'attn_mask' in sample.kwargs}", sample)
    return list(kept.values())


def arguments(sample: Any, dtype: torch.dtype) -> tuple[list[Tensor], dict[str, Any]]:
    options = dict(sample.kwargs)
    if "attn_mask" in options:
        options["attn_mask"] = options["attn_mask"].to(dtype)
    return [x.to(dtype) for x in (sample.input, *sample.args)], options


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_samples(operator: Any, dtype: str) -> None:
    """Each within the budget, dense and as views of any strides; with dropout, their shape."""
    chosen = getattr(torch, dtype)
    served = 0
    for sample in samples(operator, chosen):
        tensors, options = arguments(sample, chosen)
        out = operator(*tensors, **options)
        strided = sample.noncontiguous()
        views = operator(strided.input, *strided.args, **strided.kwargs)
        served += sdpa.explain(*tensors, **options, always=True).flashmetal
        with sdpa_kernel(SDPBackend.MATH):
            right, exact_options = arguments(sample, torch.float64)
            exact = operator(*right, **exact_options)
            eager = operator(*tensors, **options)
        assert out.shape == views.shape == exact.shape
        assert out.dtype == views.dtype == chosen
        if options["dropout_p"]:
            assert out.isfinite().all()
            continue
        for found in (out, views):
            assert (found.double() - exact).abs().max() <= error_budget(eager, exact)
    # Of nine kinds the four of broadcast batches are PyTorch's.
    assert served == 9


def test_derivatives(operator: Any) -> None:
    """Against differences in float64; the operator seeds each run, so dropout is a constant."""
    for sample in samples(operator, torch.float64, requires_grad=True):
        mask = sample.kwargs.get("attn_mask")
        options = {k: v for k, v in sample.kwargs.items() if k != "attn_mask"}

        def attention(
            query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: Any = options
        ) -> Tensor:
            small = query[:1], key[:1], value[:1]
            return operator(*small, attn_mask=mask, **options)

        inputs = sample.input, *sample.args, mask
        assert torch.autograd.gradcheck(attention, inputs, fast_mode=True)
