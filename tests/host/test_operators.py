"""flash_attn's forward and backward operators, as context parallelism calls them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flashmetal
from flashmetal import api_operators
from flashmetal.integrations.flash_attn.flash_attn_3 import flash_attn_combine
from flashmetal.testing import error_budget

OPTIONS = (0.3, True, 4, -1, 0.0, None)  # scale, causal, window, softcap, ALiBi


def inputs(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    q = torch.randn(2, 6, 4, 8, dtype=dtype, requires_grad=True)
    return [q, *(torch.randn(2, 9, 2, 8, dtype=dtype, requires_grad=True) for _ in "kv")]


def recorded(q: Any, k: Any, v: Any, **options: Any) -> Any:
    return flashmetal.flash_attn_func(
        q, k, v, softmax_scale=0.3, causal=True, window_size=(4, -1), return_lse=True, **options
    )


def test_forward_and_backward_are_those_autograd_records() -> None:
    q, k, v = inputs()
    out, lse, signs, state = api_operators.flash_attn_forward(q, k, v, 0.0, *OPTIONS, False)
    expected, expected_lse = recorded(q, k, v)
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(lse, expected_lse.detach())
    assert not out.requires_grad
    assert signs.numel() == 0
    dout = torch.randn_like(out)
    found = [torch.full_like(x, torch.nan) for x in (q, k, v)]
    delta = api_operators.flash_attn_backward(
        dout, q, k, v, out, lse, *found, 0.0, *OPTIONS, True, state
    )
    for gradient, exact in zip(found, torch.autograd.grad(expected, (q, k, v), dout), strict=True):
        torch.testing.assert_close(gradient, exact)
    torch.testing.assert_close(delta, (dout * out).sum(-1).transpose(1, 2))


def test_only_the_gradients_asked_for_are_written() -> None:
    q, k, v = inputs()
    out, lse, _, state = api_operators.flash_attn_forward(q, k, v, 0.0, *OPTIONS, False)
    dv = torch.empty_like(v)
    dout = torch.randn_like(out)
    arguments = dout, q, k, v, out, lse, None, None, dv, 0.0, *OPTIONS, False, state
    api_operators.flash_attn_backward(*arguments)
    (exact,) = torch.autograd.grad(recorded(q, k, v)[0], v, dout)
    torch.testing.assert_close(dv, exact)


def test_dropout_is_drawn_again_from_its_state() -> None:
    q, k, v = inputs()
    torch.manual_seed(3)
    out, lse, signs, state = api_operators.flash_attn_forward(q, k, v, 0.4, *OPTIONS, True)
    torch.manual_seed(3)
    expected, _, expected_signs = recorded(q, k, v, dropout_p=0.4, return_attn_probs=True)
    torch.testing.assert_close(out, expected.detach())
    assert torch.equal(signs, expected_signs)
    dout, found = torch.randn_like(out), [torch.empty_like(x) for x in (q, k, v)]
    api_operators.flash_attn_backward(dout, q, k, v, out, lse, *found, 0.4, *OPTIONS, False, state)
    for gradient, exact in zip(found, torch.autograd.grad(expected, (q, k, v), dout), strict=True):
        torch.testing.assert_close(gradient, exact)
    with pytest.raises(ValueError, match="_flash_attn_backward: dropout_p=0.4 needs rng_state"):
        api_operators.flash_attn_backward(dout, q, k, v, out, lse, *found, 0.4, *OPTIONS, False)


def test_passes_over_parts_of_the_keys_add_up() -> None:
    """A ring: each part's backward pass is given the merged output and log-sum-exp."""
    q, k, v = inputs()
    options = 0.3, False, -1, -1, 0.0, None
    parts = [slice(0, 5), slice(5, 9)]
    shares = [
        api_operators.flash_attn_forward(q, k[:, rows], v[:, rows], 0.0, *options, False)
        for rows in parts
    ]
    out, lse = flash_attn_combine(
        torch.stack([s[0] for s in shares]), torch.stack([s[1].transpose(1, 2) for s in shares])
    )
    lse = lse.transpose(1, 2).contiguous()
    dout, found = torch.randn_like(out), [torch.zeros_like(x) for x in (q, k, v)]
    for rows in parts:
        part = q, k[:, rows], v[:, rows]
        gradients = [torch.empty_like(x) for x in part]
        api_operators.flash_attn_backward(dout, *part, out, lse, *gradients, 0.0, *options, False)
        found[0] += gradients[0]
        found[1][:, rows], found[2][:, rows] = gradients[1:]
    whole = flashmetal.flash_attn_func(q, k, v, softmax_scale=0.3)
    eager = torch.autograd.grad(whole, (q, k, v), dout)
    doubled = [x.detach().double().requires_grad_() for x in (q, k, v)]
    exact = flashmetal.flash_attn_func(*doubled, softmax_scale=0.3, impl="reference")
    exact = torch.autograd.grad(exact, doubled, dout.double())
    for gradient, single, double in zip(found, eager, exact, strict=True):
        assert (gradient - double).abs().max() <= error_budget(single, double)


def test_packed_sequences() -> None:
    q, k, v = (x.detach().flatten(0, 1).requires_grad_() for x in inputs())
    lengths = *(torch.tensor([0, n // 3, n], dtype=torch.int32) for n in (12, 18)), 12, 18
    forward = api_operators.flash_attn_varlen_forward(q, k, v, *lengths, 0.0, *OPTIONS)
    out, lse, _, state = forward
    expected, expected_lse = flashmetal.flash_attn_varlen_func(
        q, k, v, *lengths, 0.0, 0.3, True, (4, -1), return_lse=True
    )
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(lse, expected_lse.detach())
    dout, found = torch.randn_like(out), [torch.empty_like(x) for x in (q, k, v)]
    delta = api_operators.flash_attn_varlen_backward(
        dout, q, k, v, out, lse, *found, *lengths, 0.0, *OPTIONS, False, state
    )
    for gradient, exact in zip(found, torch.autograd.grad(expected, (q, k, v), dout), strict=True):
        torch.testing.assert_close(gradient, exact)
    assert delta.shape == lse.shape
    with pytest.raises(NotImplementedError, match="_flash_attn_varlen_forward: block_table"):
        api_operators.flash_attn_varlen_forward(
            q, k, v, *lengths, 0.0, 0.3, True, leftpad_k=torch.zeros(2)
        )


WRONG_ROWS: dict[str, tuple[int, torch.Tensor, type[Exception], str]] = {
    "few lse": (
        5,
        torch.zeros(2, 4, 8),
        ValueError,
        r"softmax_lse must be \(2, 4, 6\) on cpu, got",
    ),
    "lse of rows and heads": (5, torch.zeros(2, 6, 4), ValueError, "softmax_lse must be"),
    "half lse": (5, torch.zeros(2, 4, 6).half(), TypeError, "softmax_lse must have torch.float32"),
    "out of a head": (4, torch.zeros(2, 6, 1, 8), ValueError, r"out must be \(2, 6, 4, 8\)"),
    "dout of a row": (0, torch.zeros(2, 1, 4, 8), ValueError, r"dout must be \(2, 6, 4, 8\)"),
    "double dout": (0, torch.zeros(2, 6, 4, 8).double(), TypeError, "dout must have q's dtype"),
    "dk of q": (7, torch.zeros(2, 6, 4, 8), ValueError, r"dk must be \(2, 9, 2, 8\)"),
}


@pytest.mark.parametrize("case", WRONG_ROWS)
def test_rows_that_do_not_fit_are_named(case: str) -> None:
    place, wrong, error, words = WRONG_ROWS[case]
    q, k, v = inputs()
    out, lse, *_ = api_operators.flash_attn_forward(q, k, v, 0.0, *OPTIONS, False)
    gradients = [torch.zeros_like(x) for x in (q, k, v)]
    given = [torch.ones_like(out), q, k, v, out, lse, *gradients]
    given[place] = wrong
    with pytest.raises(error, match=f"_flash_attn_backward: {words}"):
        api_operators.flash_attn_backward(*given, 0.0, *OPTIONS, False)
    assert not any(x.any() for x in gradients)
