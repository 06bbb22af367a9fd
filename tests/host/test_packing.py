"""Packed tensors, strides and outputs: what reaches an engine, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import flashmetal
from flashmetal.engines import portable
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs

STARTS = torch.tensor([0, 3, 10], dtype=torch.int32)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[AttentionInputs, Tensor | None]]]:
    """The inputs and the output that each call hands to the portable engine."""
    calls: list[tuple[AttentionInputs, Tensor | None]] = []
    forward = portable.forward

    def record(
        problem: AttentionProblem, inputs: AttentionInputs, out: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        calls.append((inputs, out))
        return forward(problem, inputs, out)

    monkeypatch.setattr(portable, "forward", record)
    return calls


def same_memory(a: Tensor, b: Tensor) -> bool:
    return (a.data_ptr(), a.shape, a.stride()) == (b.data_ptr(), b.shape, b.stride())


def test_qkvpacked_parts_are_read_in_place(seen: list[Any]) -> None:
    qkv = torch.randn(2, 10, 3, 4, 8)
    out = flashmetal.flash_attn_qkvpacked_func(qkv, causal=True, impl="portable")
    assert all(same_memory(x, qkv[:, :, i]) for i, x in enumerate(seen[0][0][:3]))
    assert torch.equal(
        out, flashmetal.flash_attn_func(*qkv.unbind(2), causal=True, impl="portable")
    )


def test_kvpacked_parts_are_read_in_place(seen: list[Any]) -> None:
    q, kv = torch.randn(2, 5, 4, 8), torch.randn(2, 10, 2, 2, 8)
    out = flashmetal.flash_attn_kvpacked_func(q, kv, softcap=3.0, impl="portable")
    assert all(same_memory(x, kv[:, :, i]) for i, x in enumerate(seen[0][0][1:3]))
    assert torch.equal(
        out, flashmetal.flash_attn_func(q, *kv.unbind(2), softcap=3.0, impl="portable")
    )


def test_varlen_packed_parts_are_read_in_place(seen: list[Any]) -> None:
    qkv, q, kv = torch.randn(10, 3, 4, 8), torch.randn(10, 4, 8), torch.randn(10, 2, 2, 8)
    options = dict(window_size=(2, 1), impl="portable")
    lengths = STARTS, STARTS, 7, 7
    out = flashmetal.flash_attn_varlen_qkvpacked_func(qkv, STARTS, 7, **options)
    assert all(same_memory(x, qkv[:, i]) for i, x in enumerate(seen[-1][0][:3]))
    assert torch.equal(out, flashmetal.flash_attn_varlen_func(*qkv.unbind(1), *lengths, **options))
    out = flashmetal.flash_attn_varlen_kvpacked_func(q, kv, *lengths, **options)
    assert all(same_memory(x, kv[:, i]) for i, x in enumerate(seen[-1][0][1:3]))
    assert torch.equal(
        out, flashmetal.flash_attn_varlen_func(q, *kv.unbind(1), *lengths, **options)
    )


def test_any_strides_are_kept_but_a_last_one(seen: list[Any]) -> None:
    q = torch.randn(2, 4, 10, 8).transpose(1, 2)
    k = torch.randn(2, 10, 8, 4).transpose(2, 3)  # last stride 4
    v = torch.randn(3, 12, 4, 16)[1:, 2:, :, 8:]  # at an offset
    out = flashmetal.flash_attn_func(q, k, v, impl="portable")
    inputs = seen[0][0]
    assert same_memory(inputs.q, q)
    assert same_memory(inputs.v, v)
    assert inputs.k.is_contiguous()
    assert torch.equal(inputs.k, k)
    copies = [x.contiguous() for x in (q, k, v)]
    assert torch.equal(out, flashmetal.flash_attn_func(*copies, impl="portable"))
    assert out.is_contiguous()


def test_vectors_come_contiguous_and_sinks_in_float32(seen: list[Any]) -> None:
    q = torch.randn(1, 10, 4, 8)
    slopes, sinks = torch.rand(8)[::2], torch.randn(4, 3, dtype=torch.bfloat16)[:, 1]
    flashmetal.flash_attn_func(q, q, q, alibi_slopes=slopes, s_aux=sinks, impl="portable")
    inputs = seen[0][0]
    assert inputs.alibi_slopes.is_contiguous()
    assert torch.equal(inputs.alibi_slopes, slopes)
    assert inputs.sinks.is_contiguous()
    assert torch.equal(inputs.sinks, sinks.float())
    assert inputs.sinks.dtype == torch.float32


def in_place(out: Tensor, q: Tensor, k: Tensor, v: Tensor, **changes: Any) -> None:
    options: dict[str, Any] = dict(do_causal=True, scale=0.3, softcapping=1.0)
    lengths = STARTS, STARTS, 7, 7
    result = flashmetal.flash_attention_varlen(out, q, k, v, *lengths, **{**options, **changes})
    assert result is None


def test_in_place_writes_into_out_itself(seen: list[Any]) -> None:
    q, k, v = torch.randn(3, 10, 4, 8)
    out = torch.full_like(q, torch.nan)
    version = out._version
    in_place(out, q, k, v, impl="portable")
    assert seen[0][1] is not None
    assert same_memory(seen[0][1], out)
    assert out._version > version, "autograd must notice the write"
    options = dict(softmax_scale=0.3, causal=True, impl="portable")
    lengths = STARTS, STARTS, 7, 7
    assert torch.equal(out, flashmetal.flash_attn_varlen_func(q, k, v, *lengths, **options))


@pytest.mark.parametrize("impl", ["auto", "portable", "reference"])
def test_in_place_into_a_view_leaves_its_surroundings(impl: str) -> None:
    q, k, v = torch.randn(3, 10, 4, 8)
    whole, expected = torch.full((10, 6, 9), 7.0), torch.empty_like(q)
    in_place(whole[:, 1:5, :8], q, k, v, impl=impl)
    in_place(expected, q, k, v, impl=impl)
    assert torch.equal(whole[:, 1:5, :8], expected)
    whole[:, 1:5, :8] = 7.0
    assert torch.all(whole == 7.0)


def test_softcapping_of_one_is_none() -> None:
    q, k, v = torch.randn(3, 10, 4, 8)
    results = {}
    for softcapping in (1.0, 0.0, 2.0):
        results[softcapping] = torch.empty_like(q)
        in_place(results[softcapping], q, k, v, softcapping=softcapping)
    lengths = STARTS, STARTS, 7, 7
    func = flashmetal.flash_attn_varlen_func
    plain = func(q, k, v, *lengths, softmax_scale=0.3, causal=True)
    capped = func(q, k, v, *lengths, softmax_scale=0.3, causal=True, softcap=2.0)
    assert torch.equal(results[1.0], plain)
    assert torch.equal(results[0.0], plain)
    assert torch.equal(results[2.0], capped)
    assert not torch.equal(plain, capped)


def test_results_come_as_flash_attn_gives_them() -> None:
    q, k, v = torch.randn(3, 2, 10, 4, 8)
    func = flashmetal.flash_attn_func
    out = func(q, k, v)
    assert isinstance(out, Tensor)
    with_lse = func(q, k, v, return_lse=True)
    with_probs = func(q, k, v, return_attn_probs=True)
    assert len(with_lse) == 2
    assert len(with_probs) == 3
    assert with_probs[2] is None
    for o, lse in (with_lse, with_probs[:2]):
        assert torch.equal(o, out)
        assert lse.shape == (2, 4, 10)
        assert lse.dtype == torch.float32
    lengths = STARTS, STARTS, 7, 7
    _, lse = flashmetal.flash_attn_varlen_func(q[0], k[0], v[0], *lengths, return_lse=True)
    assert lse.shape == (4, 10)


@pytest.mark.parametrize("impl", ["auto", "portable", "reference"])
def test_two_runs_give_equal_bits(impl: str) -> None:
    q, k, v = torch.randn(3, 2, 50, 4, 8, dtype=torch.bfloat16)
    first, second = (
        flashmetal.flash_attn_func(q, k, v, causal=True, return_lse=True, impl=impl)
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))


def test_in_place_into_a_tensor_that_records_keeps_the_engine_asked_for(seen: list[Any]) -> None:
    q, k, v = torch.randn(3, 10, 4, 8)
    leaf = torch.zeros_like(q, requires_grad=True)
    out = leaf * 1.0
    in_place(out, q, k, v, impl="portable")
    assert len(seen) == 1
    out.sum().backward()
    assert torch.all(leaf.grad == 0), "what was in out before is overwritten"


def test_one_tensor_of_offsets_is_checked_for_both_sides() -> None:
    starts = torch.tensor([0, 2, 5], dtype=torch.int32)
    q, k = torch.zeros(5, 2, 8), torch.zeros(7, 2, 8)
    with pytest.raises(ValueError, match="cu_seqlens_k must run from 0 to the 7 rows of k"):
        flashmetal.flash_attn_varlen_func(q, k, k, starts, starts, 5, 5)
