"""explain: the plan of a call in words, with the arguments and errors of the call."""

from __future__ import annotations

import inspect

import pytest
import torch

import flashmetal
from flashmetal.engines.metal import Gpu, Runtime, metal_runtime


def test_it_says_which_engine_and_why_not_the_others() -> None:
    q = torch.randn(1, 64, 4, 32)
    explanation = flashmetal.explain(q, q, q, causal=True, softcap=2.0)
    lines = str(explanation).splitlines()
    assert explanation.plan.engine == "portable"
    assert lines[0].startswith("engine portable: ")
    assert lines[1] == "  not metal: no Metal runtime serves cpu tensors on this machine"
    assert lines[2].startswith("  not stock: ")
    assert "softcap" in lines[2]


def test_the_engine_of_the_gradients_is_named() -> None:
    q = torch.randn(1, 64, 4, 32, requires_grad=True)
    assert flashmetal.explain(q, q, q).plan[0::4] == ("stock", "stock")
    assert "gradients by portable" in str(flashmetal.explain(q, q, q, softcap=2.0))
    assert flashmetal.explain(q.detach(), q.detach(), q.detach()).plan.backward is None


def test_a_metal_kernel_is_named() -> None:
    def unused(source: str) -> None:
        raise AssertionError("explaining compiles nothing")

    q = torch.randn(1, 64, 4, 32)
    with metal_runtime(Runtime(unused, device="cpu", gpu=Gpu.named("M1"))):
        explanation = flashmetal.explain(q, q, q, impl="metal", kernel="scalar")
        assert str(explanation).startswith("engine metal, kernel scalar: ")
        # A simulator is right but slow: it never serves by itself.
        assert flashmetal.explain(q, q, q).plan.engine != "metal"


def test_varlen_is_described_as_such() -> None:
    q, starts = torch.randn(9, 4, 32), torch.tensor([0, 4, 9], dtype=torch.int32)
    problem = flashmetal.explain(q, q, q, starts, starts, 5, 5, causal=True).problem
    assert (problem.layout, problem.batch, problem.seqlen_q) == ("varlen", 2, 5)
    assert problem.window_right == 0


def test_it_raises_what_the_call_raises() -> None:
    q, starts = torch.randn(9, 4, 32), torch.tensor([0, 4, 9], dtype=torch.int32)
    with pytest.raises(ValueError, match="explain: softcap must be positive"):
        flashmetal.explain(q[None], q[None], q[None], softcap=-1.0)
    with pytest.raises(NotImplementedError, match="impl='metal' cannot serve this call"):
        flashmetal.explain(q[None], q[None], q[None], impl="metal")
    with pytest.raises(TypeError, match="explain: max_seqlen_k must be an int"):
        flashmetal.explain(q, q, q, starts, starts, 5)
    with pytest.raises(TypeError, match="explain: cu_seqlens_q must be a torch.Tensor, got None"):
        flashmetal.explain(q, q, q, max_seqlen_q=5, max_seqlen_k=5)


def test_it_takes_every_argument_of_the_public_functions() -> None:
    taken = inspect.signature(flashmetal.explain).parameters
    for call in (flashmetal.flash_attn_func, flashmetal.flash_attn_varlen_func):
        for name, parameter in inspect.signature(call).parameters.items():
            assert name in taken
            if parameter.default is not parameter.empty:
                assert taken[name].default == parameter.default
