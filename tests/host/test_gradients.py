"""Gradients: those of plain autograd, for every input, and never silently missing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

import flashmetal
from flashmetal.reference import attention_reference
from flashmetal.request import AttentionInputs, Request
from flashmetal.testing import make_inputs

STARTS_Q = torch.tensor([0, 3, 3, 8], dtype=torch.int32)
STARTS_K = torch.tensor([0, 5, 9, 9], dtype=torch.int32)
VARLEN = STARTS_Q, STARTS_K, 5, 5
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal": {"causal": True},
    "window": {"window_size": (1, 1)},
    "softcap": {"softcap": 1.5, "causal": True},
}


def leaf(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


DIFFERENCES: dict[str, dict[str, Any]] = {
    "plain": {},
    "causal, hidden rows": {"window_right": 0, "seqlen_q": 5, "seqlen_k": 3},
    "window, softcap": {"window_left": 1, "window_right": 1, "softcap": 1.5},
    "sinks": {"sinks": True, "window_right": 0, "seqlen_q": 5, "seqlen_k": 3},
    "bias": {"bias": True, "alibi": True},
    "packed": {"lengths_q": (2, 0, 3), "lengths_k": (3, 2, 1), "window_right": 0, "sinks": True},
}


@pytest.mark.parametrize("case", DIFFERENCES)
def test_gradients_equal_differences(case: str) -> None:
    """gradcheck of o and of lse where it is finite, with respect to every input there is."""
    shape: dict[str, Any] = dict(seqlen_q=4, heads_q=2, heads_k=1, head_dim=3, head_dim_v=2)
    problem, inputs = make_inputs(**{**shape, **DIFFERENCES[case]}, dtype=torch.float64)
    names = [n for n in inputs._fields[:6] if getattr(inputs, n) is not None]
    # gradcheck steps by 1e-6: every input must be float64.
    given = [getattr(inputs, name).double().requires_grad_() for name in names]

    def call(*given: Tensor) -> tuple[Tensor, Tensor]:
        changed = inputs._replace(**dict(zip(names, given, strict=True)))
        o, lse = attention_reference(problem, changed, compute_dtype=torch.float64)
        return o, lse[torch.isfinite(lse)]

    assert torch.autograd.gradcheck(call, given)


@pytest.mark.parametrize("name", OPTIONS)
def test_packed_gradients_equal_those_of_each_sequence(name: str) -> None:
    q, k, v = leaf(8, 4, 3), leaf(9, 2, 3), leaf(9, 2, 2)
    out = flashmetal.flash_attn_varlen_func(q, k, v, *VARLEN, **OPTIONS[name])
    weights = torch.randn_like(out)
    packed = torch.autograd.grad((out * weights).sum(), (q, k, v))
    alone = []
    for b in range(3):
        rows, keys = slice(*STARTS_Q[b : b + 2]), slice(*STARTS_K[b : b + 2])
        out = flashmetal.flash_attn_func(
            q[None, rows], k[None, keys], v[None, keys], **OPTIONS[name]
        )
        alone.append((out[0] * weights[rows]).sum())
    for actual, expected in zip(packed, torch.autograd.grad(sum(alone), (q, k, v)), strict=True):
        torch.testing.assert_close(actual, expected)


def test_gradients_equal_torchs_own() -> None:
    q, k, v = (torch.randn(2, 9, 4, 8, requires_grad=True) for _ in range(3))
    weights = torch.randn(2, 9, 4, 8)
    ours = flashmetal.flash_attn_func(q, k, v, causal=True)
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    torchs = torch.nn.functional.scaled_dot_product_attention(*heads_first, is_causal=True)
    for actual, expected in zip(
        torch.autograd.grad((ours * weights).sum(), (q, k, v)),
        torch.autograd.grad((torchs.transpose(1, 2) * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected)


def test_hidden_rows_and_no_keys_have_zero_gradients() -> None:
    """A row that sees nothing is constant: no NaN, in any direction."""
    for seqlen_k in (2, 0):
        q, k = leaf(1, 5, 2, 3), leaf(1, seqlen_k, 2, 3)
        out, lse = flashmetal.flash_attn_func(q, k, k, causal=True, return_lse=True)
        hidden = 5 - seqlen_k
        assert torch.all(out[:, :hidden] == 0)
        assert torch.all(lse[..., :hidden] == -torch.inf)
        (out.sum() + lse[..., hidden:].sum()).backward()
        assert torch.all(q.grad[:, :hidden] == 0)
        assert torch.isfinite(q.grad).all()
        assert torch.isfinite(k.grad).all()


def test_unused_keys_of_nan_have_zero_gradients() -> None:
    q, k = leaf(8, 2, 3), torch.randn(9, 2, 3, dtype=torch.float64)
    k[3:5] = k[6:9] = torch.nan
    k.requires_grad_()
    used = torch.tensor([3, 1, 0], dtype=torch.int32)
    flashmetal.flash_attn_varlen_func(q, k, k, *VARLEN, seqused_k=used).sum().backward()
    assert torch.isfinite(q.grad).all()
    assert torch.isfinite(k.grad).all()
    assert torch.all(k.grad[3:5] == 0)


@pytest.mark.parametrize("name", ["q", "k", "v", "bias", "alibi_slopes", "sinks"])
def test_each_input_alone_has_a_gradient(name: str) -> None:
    """mtlflashattn returned graph-less outputs to training code."""
    inputs = AttentionInputs(
        *torch.randn(3, 1, 5, 2, 8), torch.randn(1, 2, 5, 5), torch.rand(2), torch.randn(2)
    )
    getattr(inputs, name).requires_grad_()
    q, k, v, bias, slopes, sinks = inputs[:6]
    out, lse = flashmetal.flash_attn_func(
        q, k, v, bias=bias, alibi_slopes=slopes, s_aux=sinks, return_lse=True
    )
    assert out.requires_grad
    (out.square().sum() + lse.sum()).backward()
    gradient = getattr(inputs, name).grad
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def test_in_place_is_differentiable() -> None:
    q, k, v = leaf(8, 2, 3), leaf(9, 2, 3), leaf(9, 2, 3)
    out = torch.empty(8, 2, 3, dtype=torch.float64)
    flashmetal.flash_attention_varlen(out, q, k, v, *VARLEN, True, 0.3, 1.0)
    expected = flashmetal.flash_attn_varlen_func(q, k, v, *VARLEN, softmax_scale=0.3, causal=True)
    assert torch.equal(out, expected)
    for actual, wanted in zip(
        torch.autograd.grad(out.square().sum(), (q, k, v)),
        torch.autograd.grad(expected.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert torch.equal(actual, wanted)


def test_no_grad_plans_no_backward() -> None:
    q, k, v = (torch.randn(1, 9, 2, 8, requires_grad=True) for _ in range(3))
    assert flashmetal.explain(q, k, v).plan.backward == "stock"
    with torch.no_grad():
        assert flashmetal.explain(q, k, v).plan.backward is None
        assert not flashmetal.flash_attn_func(q, k, v).requires_grad
    with torch.inference_mode():
        assert flashmetal.explain(q, k, v).plan.backward is None


def test_the_operator_refuses_forward_mode() -> None:
    """It would lose the derivative; the public functions keep it."""
    q = torch.randn(1, 9, 2, 8)
    inputs, request = AttentionInputs(q, q, q), Request("test")
    with forward_ad.dual_level(), pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.ops.flashmetal.attention(*inputs, *request)


def test_forward_mode_derivatives_are_kept() -> None:
    q, k, v, tangent = torch.randn(4, 1, 6, 2, 8, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q, tangent)
        out = forward_ad.unpack_dual(flashmetal.flash_attn_func(dual, k, v, causal=True))
    step = 1e-6
    forth, back = (
        flashmetal.flash_attn_func(q + s * tangent, k, v, causal=True) for s in (step, -step)
    )
    assert out.tangent is not None
    torch.testing.assert_close(out.tangent, (forth - back) / (2 * step), rtol=1e-6, atol=1e-8)


def test_function_transforms() -> None:
    q, k, v = torch.randn(3, 1, 6, 2, 8, dtype=torch.float64)

    def loss(q: Tensor) -> Tensor:
        return flashmetal.flash_attn_func(q, k, v, causal=True).square().sum()

    leaf_q = q.clone().requires_grad_()
    loss(leaf_q).backward()
    torch.testing.assert_close(torch.func.grad(loss)(q), leaf_q.grad)
    primal, tangent = torch.func.jvp(loss, (q,), (q,))
    torch.testing.assert_close(primal, loss(q))
    torch.testing.assert_close(tangent, (leaf_q.grad * q).sum())


@pytest.mark.parametrize("impl", ["portable", "stock"])
def test_an_explicit_engine_says_that_it_has_no_transforms(impl: str) -> None:
    q = torch.randn(1, 6, 2, 8)

    def call(q: Tensor) -> Tensor:
        return flashmetal.flash_attn_func(q, q, q, impl=impl)

    why = f"flash_attn_func: impl='{impl}' has no derivatives under torch.func.*\"auto\""
    with pytest.raises(NotImplementedError, match=why):
        torch.func.grad(lambda q: call(q).sum())(q)
    with pytest.raises(NotImplementedError, match=why):
        torch.func.jvp(call, (q,), (q,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=why):
        call(q)
