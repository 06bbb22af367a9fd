"""A decode step under torch.compile: one graph, the same bits, the caches written in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import flashmetal
from flashmetal.cache.append import AppendInputs, AppendRequest
from flashmetal.cache.formats import quantise

B, HQ, HK, D, PAGE = 2, 4, 2, 32, 8


def tensors(cache_format: str) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    k_cache, k_scale = quantise(randn(9, PAGE, HK, D), cache_format)
    v_cache, v_scale = quantise(randn(9, PAGE, HK, D), cache_format)
    return dict(
        q=randn(B, 1, HQ, D),
        k_cache=k_cache,
        v_cache=v_cache,
        k=randn(B, 1, HK, D),
        v=randn(B, 1, HK, D),
        rotary_cos=randn(40, 4),
        rotary_sin=randn(40, 4),
        cache_seqlens=torch.tensor([3, 16], dtype=torch.int32),
        block_table=torch.tensor([[4, 1, -1], [0, 8, 2]], dtype=torch.int32),
        k_scale=k_scale,
        v_scale=v_scale,
    )


def decode(arguments: dict[str, Any]) -> Tensor:
    out = flashmetal.flash_attn_with_kvcache(**arguments, causal=True)
    return out * 2


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
@pytest.mark.parametrize("cache_format", ["dense", "int8"])
def test_a_decode_step_is_one_graph(cache_format: str, dynamic: bool) -> None:
    eager, traced = tensors(cache_format), tensors(cache_format)
    expected = decode(eager)
    torch._dynamo.reset()
    with torch.no_grad():
        out = torch.compile(decode, fullgraph=True, backend="aot_eager", dynamic=dynamic)(traced)
    assert torch.equal(out, expected)
    for name in ("k_cache", "v_cache", "k_scale", "v_scale"):
        if eager[name] is not None:
            assert torch.equal(traced[name], eager[name])


def test_the_operator_is_what_torch_expects() -> None:
    given = tensors("int8")
    inputs = AppendInputs(
        q=given["q"],
        k_new=given["k"],
        v_new=given["v"],
        k_cache=given["k_cache"],
        v_cache=given["v_cache"],
        cache_seqlens=given["cache_seqlens"],
        block_table=given["block_table"],
        cos=given["rotary_cos"],
        sin=given["rotary_sin"],
        k_scale=given["k_scale"],
        v_scale=given["v_scale"],
    )
    operator = torch.ops.flashmetal.cache_append.default
    torch.library.opcheck(operator, (*inputs, *AppendRequest("test")))


def test_modes_and_profilers_see_the_append() -> None:
    given = tensors("dense")
    with torch.profiler.profile() as profile:
        decode(given)
    names = {event.key for event in profile.key_averages()}
    assert {"flashmetal::cache_append", "flashmetal::attention"} <= names
