"""flash_attn 3's functions: its parameters, and flashmetal's results."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch

import flashmetal
from flashmetal.integrations.flash_attn import flash_attn_3
from flashmetal.testing import error_budget

NONE = inspect.Parameter.empty
LENGTHS = ("cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k")
DESCALES = dict.fromkeys(("q_descale", "k_descale", "v_descale"))
WINDOW = {"window_size": (-1, -1), "attention_chunk": 0, "softcap": 0.0}
TUNING = {"num_splits": 1, "pack_gqa": None, "deterministic": False, "sm_margin": 0}
SCALE: dict[str, Any] = {"softmax_scale": None, "causal": False}
LAST = {"return_attn_probs": False}
OF_BOTH = SCALE | {"qv": None} | DESCALES | WINDOW | TUNING | LAST
PARAMETERS: dict[str, dict[str, Any]] = {
    "flash_attn_func": dict.fromkeys(("q", "k", "v"), NONE) | OF_BOTH,
    "flash_attn_varlen_func": dict.fromkeys(("q", "k", "v", *LENGTHS), NONE)
    | {"seqused_q": None, "seqused_k": None}
    | OF_BOTH,
    "flash_attn_qkvpacked_func": {"qkv": NONE}
    | SCALE
    | DESCALES
    | WINDOW
    | {"deterministic": False, "num_heads_q": None, "sm_margin": 0}
    | LAST,
    "flash_attn_combine": dict.fromkeys(("out_partial", "lse_partial"), NONE)
    | {"out": None, "out_dtype": None},
}
OPTIONS: dict[str, Any] = dict(
    softmax_scale=0.3, causal=True, window_size=(3, -1), softcap=2.0, return_attn_probs=True
)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_flash_attn_3s(name: str) -> None:
    parameters = inspect.signature(getattr(flash_attn_3, name)).parameters.values()
    positional = {p.name: p.default for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD}
    assert list(positional.items()) == list(PARAMETERS[name].items())


def expected(q: Any, k: Any, v: Any) -> Any:
    options = dict(OPTIONS, return_lse=OPTIONS["return_attn_probs"])
    del options["return_attn_probs"]
    return flashmetal.flash_attn_func(q, k, v, **options)


def test_results_are_flash_attn_2s() -> None:
    q, k, v = torch.randn(2, 6, 4, 8), *torch.randn(2, 2, 9, 2, 8)
    out, lse = expected(q, k, v)
    found, found_lse = flash_attn_3.flash_attn_func(q, k, v, **OPTIONS)
    assert torch.equal(found, out)
    assert torch.equal(found_lse, lse)
    sinks = torch.randn(4)
    with_sinks = flash_attn_3.flash_attn_func(q, k, v, s_aux=sinks)
    assert torch.equal(with_sinks, flashmetal.flash_attn_func(q, k, v, s_aux=sinks))
    starts = [torch.arange(3, dtype=torch.int32) * n for n in (6, 9)]
    packed = [x.flatten(0, 1) for x in (q, k, v)]
    out_packed, lse_packed = flash_attn_3.flash_attn_varlen_func(*packed, *starts, 6, 9, **OPTIONS)
    torch.testing.assert_close(out_packed.view_as(out), out)
    torch.testing.assert_close(lse_packed.view(4, 2, 6).transpose(0, 1), lse)


def test_packed_heads_of_q_k_and_v() -> None:
    q, k, v = torch.randn(2, 6, 4, 8), *torch.randn(2, 2, 6, 2, 8)
    qkv = torch.cat((q, k, v), dim=2)
    found = flash_attn_3.flash_attn_qkvpacked_func(qkv, num_heads_q=4, **OPTIONS)
    assert torch.equal(found[0], expected(q, k, v)[0])
    qkv = torch.stack((k, k * 2, v), dim=2)
    found = flash_attn_3.flash_attn_qkvpacked_func(qkv, **OPTIONS)
    assert torch.equal(found[0], expected(k, k * 2, v)[0])
    with pytest.raises(ValueError, match="flash_attn_qkvpacked_func: qkv must be"):
        flash_attn_3.flash_attn_qkvpacked_func(torch.zeros(1, 2, 7, 8), num_heads_q=4)


@pytest.mark.parametrize("name", ["q_descale", "k_descale", "v_descale", "attention_chunk"])
@pytest.mark.parametrize("function", ["flash_attn_func", "flash_attn_qkvpacked_func"])
def test_what_is_not_served_is_refused(function: str, name: str) -> None:
    q = torch.zeros(1, 3, 2, 8)
    inputs = (q, q, q) if function == "flash_attn_func" else (torch.zeros(1, 3, 3, 2, 8),)
    value = 4 if name == "attention_chunk" else torch.zeros(1, 2)
    with pytest.raises(NotImplementedError, match=f"{function}: {name} is not implemented"):
        getattr(flash_attn_3, function)(*inputs, **{name: value})


def test_the_rest_is_refused_too() -> None:
    q, starts = torch.zeros(3, 2, 8), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="seqused_q"):
        flash_attn_3.flash_attn_varlen_func(q, q, q, starts, starts, 3, 3, seqused_q=starts[1:])
    with pytest.raises(NotImplementedError, match="get_scheduler_metadata: .*without"):
        flash_attn_3.get_scheduler_metadata(1, 1, 3, 2, 2, 8, starts)
    cache = q[None]
    with pytest.raises(NotImplementedError, match="k_descale is not implemented"):
        flash_attn_3.flash_attn_with_kvcache(cache, cache, cache, k_descale=torch.ones(1, 2))


def test_parts_over_keys_combine_to_the_whole() -> None:
    q, k, v = torch.randn(2, 5, 2, 8), *torch.randn(2, 2, 12, 2, 8)
    parts = [
        flashmetal.flash_attn_func(q, k[:, rows], v[:, rows], return_lse=True)
        for rows in (slice(0, 7), slice(7, 8), slice(8, 12))
    ]
    out = torch.stack([part[0] for part in parts])
    lse = torch.stack([part[1].transpose(1, 2) for part in parts])
    found, total = flash_attn_3.flash_attn_combine(out, lse)
    whole, whole_lse = flashmetal.flash_attn_func(q, k, v, return_lse=True)
    exact = flashmetal.flash_attn_func(*(x.double() for x in (q, k, v)), impl="reference")
    assert (found - exact).abs().max() <= error_budget(whole, exact)
    torch.testing.assert_close(total.transpose(1, 2), whole_lse)
    written = torch.empty_like(whole)
    assert flash_attn_3.flash_attn_combine(out, lse, out=written)[0] is written
    assert torch.equal(written, found)
    half, _ = flash_attn_3.flash_attn_combine(out, lse, out_dtype=torch.bfloat16)
    assert torch.equal(half, found.bfloat16())


def test_rows_that_no_part_sees_combine_to_zero() -> None:
    out, lse = torch.randn(2, 1, 3, 1, 4), torch.randn(2, 1, 3, 1)
    lse[:, 0, 1] = -torch.inf
    lse[0, 0, 2] = -torch.inf
    found, total = flash_attn_3.flash_attn_combine(out, lse)
    assert torch.equal(found[0, 1], torch.zeros(1, 4))
    assert total[0, 1, 0] == -torch.inf
    assert torch.equal(found[0, 2], out[1, 0, 2])


def test_shares_that_do_not_fit_are_refused() -> None:
    out = torch.zeros(2, 1, 3, 1, 4)
    with pytest.raises(ValueError, match="flash_attn_combine: lse_partial must be"):
        flash_attn_3.flash_attn_combine(out, torch.zeros(2, 1, 1, 3))
    with pytest.raises(ValueError, match="flash_attn_combine: out must be in out_dtype"):
        flash_attn_3.flash_attn_combine(out, out[..., 0], torch.zeros(1, 3, 1, 4), torch.float16)
