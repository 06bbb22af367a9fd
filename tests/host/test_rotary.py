"""Rotary embeddings: against complex numbers in float64, and against the append to a cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import flashmetal
from flashmetal.rotary import (
    RotaryEmbedding,
    apply_rotary,
    apply_rotary_emb,
    apply_rotary_emb_kv_,
    apply_rotary_emb_qkv_,
    apply_rotary_emb_torch,
)
from flashmetal.testing import error_budget

from ..features import DTYPES

LAYOUTS = pytest.mark.parametrize("interleaved", [False, True], ids=["halves", "pairs"])


def tables(rows: int, pairs: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    angles = torch.randn(rows, pairs)
    return angles.cos().to(dtype), angles.sin().to(dtype)


def turned(x: Any, cos: Any, sin: Any, positions: Any, interleaved: bool) -> Any:
    """x (..., S, H, D) in float64, pairs as complex numbers times cos + i sin of a position."""
    size = 2 * cos.shape[1]
    factors = torch.complex(cos.double(), sin.double())[positions][..., None, :]
    pairs = x[..., :size].double()
    shape = (-1, 2) if interleaved else (2, -1)
    pairs = pairs.unflatten(-1, shape)
    pairs = pairs if interleaved else pairs.transpose(-1, -2)
    result = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * factors)
    result = result if interleaved else result.transpose(-1, -2)
    return torch.cat((result.flatten(-2), x[..., size:].double()), dim=-1)


def assert_close(found: Any, exact: Any, x: Any, *arguments: Any) -> None:
    eager = apply_rotary_emb_torch(x, *arguments)
    assert found.dtype == x.dtype
    assert (found.double() - exact).abs().max() <= error_budget(eager, exact)


@LAYOUTS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("pairs", [4, 8], ids=["part", "whole"])
def test_turns_by_position(pairs: int, dtype: torch.dtype, interleaved: bool) -> None:
    cos, sin = tables(20, pairs, dtype)
    x = torch.randn(3, 7, 2, 16).to(dtype)
    found = apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=5)
    rows = slice(5, 12)
    exact = turned(x, cos, sin, torch.arange(5, 12), interleaved)
    assert_close(found, exact, x, cos[rows], sin[rows], interleaved)
    offsets = torch.tensor([0, 13, 5])
    found = apply_rotary_emb(x, cos, sin, interleaved, seqlen_offsets=offsets)
    rows = offsets[:, None] + torch.arange(7)
    exact = turned(x, cos, sin, rows, interleaved)
    assert_close(found, exact, x, cos[rows], sin[rows], interleaved)


@pytest.mark.parametrize("offsets", [0, 2, torch.tensor([0, 3, 9], dtype=torch.int32)], ids=str)
def test_packed_sequences_turn_as_each_alone(offsets: Any) -> None:
    cos, sin = tables(20, 4)
    x = torch.randn(9, 2, 8)
    cu_seqlens = torch.tensor([0, 4, 4, 9], dtype=torch.int32)
    found = apply_rotary_emb(
        x, cos, sin, seqlen_offsets=offsets, cu_seqlens=cu_seqlens, max_seqlen=5
    )
    for b, rows in ((0, slice(0, 4)), (2, slice(4, 9))):
        offset = offsets if isinstance(offsets, int) else int(offsets[b])
        alone = apply_rotary_emb(x[None, rows], cos, sin, seqlen_offsets=offset)[0]
        assert torch.equal(found[rows], alone)


@LAYOUTS
def test_in_place_is_the_same_and_touches_only_its_part(interleaved: bool) -> None:
    cos, sin = tables(7, 4)
    qkv = torch.randn(2, 7, 3, 2, 16)
    before = qkv.clone()
    assert apply_rotary_emb_qkv_(qkv, cos, sin, sin, cos, interleaved) is qkv
    assert torch.equal(qkv[:, :, 0], apply_rotary_emb(before[:, :, 0], cos, sin, interleaved))
    assert torch.equal(qkv[:, :, 1], apply_rotary_emb(before[:, :, 1], sin, cos, interleaved))
    assert torch.equal(qkv[:, :, 2], before[:, :, 2])
    grouped = before.flatten(2, 3).clone()[:, :, :4]  # 2 heads of q, 1 of k, 1 of v
    q, k, v = grouped.clone().split((2, 1, 1), dim=2)
    apply_rotary_emb_qkv_(grouped, cos, sin, interleaved=interleaved, num_heads_q=2)
    expected = [apply_rotary_emb(part, cos, sin, interleaved) for part in (q, k)]
    assert torch.equal(grouped, torch.cat((*expected, v), dim=2))
    kv = before[:, :, 1:].clone()
    assert apply_rotary_emb_kv_(kv, cos, sin, interleaved) is kv
    assert torch.equal(kv[:, :, 0], apply_rotary_emb(before[:, :, 1], cos, sin, interleaved))
    assert torch.equal(kv[:, :, 1], before[:, :, 2])


@pytest.mark.parametrize("inplace", [False, True], ids=["new", "in place"])
@LAYOUTS
def test_gradients(interleaved: bool, inplace: bool) -> None:
    cos, sin = (t.double() for t in tables(5, 2))
    x = torch.randn(2, 5, 1, 6, dtype=torch.float64, requires_grad=True)

    def turn(x: torch.Tensor) -> torch.Tensor:
        return apply_rotary_emb(x * 1.0, cos, sin, interleaved, inplace)

    assert torch.autograd.gradcheck(turn, x)
    grad = torch.randn_like(x)
    (found,) = torch.autograd.grad(turn(x), x, grad)
    back = apply_rotary(grad, cos, sin, interleaved=interleaved, conjugate=True)
    torch.testing.assert_close(found, back)


@LAYOUTS
def test_agrees_with_the_append_to_a_cache(interleaved: bool) -> None:
    cos, sin = tables(24, 8)
    q, k, v = torch.randn(3, 2, 3, 2, 16)
    caches = [torch.randn(2, 24, 2, 16) for _ in "kv"]
    copies = [cache.clone() for cache in caches]
    lengths = torch.tensor([5, 11], dtype=torch.int32)
    rotary: dict[str, Any] = dict(rotary_cos=cos, rotary_sin=sin, rotary_interleaved=interleaved)
    options: dict[str, Any] = dict(cache_seqlens=lengths, causal=True)
    flashmetal.flash_attn_with_kvcache(q, *caches, k, v, **rotary, **options)
    k = apply_rotary_emb(k, cos, sin, interleaved, seqlen_offsets=lengths)
    q = apply_rotary_emb(q, cos, sin, interleaved, seqlen_offsets=lengths)
    flashmetal.flash_attn_with_kvcache(q, *copies, k, v, **options)
    torch.testing.assert_close(caches, copies)


@pytest.mark.parametrize("scale_base", [None, 512.0], ids=["plain", "xpos"])
def test_the_layer_depends_on_distances_alone(scale_base: float | None) -> None:
    """What rotary embeddings are for: q.k is a function of the difference of the positions."""
    layer = RotaryEmbedding(16, scale_base=scale_base)
    rows = torch.randn(1, 1, 2, 1, 16).expand(1, 12, 2, 1, 16)
    q, kv = layer(rows[:, :, 0].clone(), rows.clone())
    scores = torch.einsum("bqhd,bkhd->qk", q, kv[:, :, 0])
    for distance in range(12):
        same = scores.diagonal(-distance)
        torch.testing.assert_close(same, same[:1].expand_as(same))
    assert scores[1:, 0].diff().abs().min() > 0
    # xPos leaves the middle of its tables as it is, so that neither end grows far.
    plain = RotaryEmbedding(16)(rows[:, :, 0].clone(), rows.clone())[0]
    torch.testing.assert_close(q[:, 6], plain[:, 6])


def test_the_layer_keeps_its_tables_and_makes_longer_ones() -> None:
    layer = RotaryEmbedding(8, base=100.0)
    qkv = torch.randn(2, 6, 3, 2, 8)
    whole = layer(qkv.clone())
    step = layer(qkv[:, 4:].clone(), seqlen_offset=4)
    assert torch.equal(step, whole[:, 4:])
    offsets = torch.tensor([4, 4], dtype=torch.int32)
    assert torch.equal(layer(qkv[:, 4:].clone(), seqlen_offset=offsets), whole[:, 4:])
    assert torch.equal(layer(qkv[:, 4:].clone(), seqlen_offset=offsets, max_seqlen=9), whole[:, 4:])
    angles = torch.arange(6)[:, None] * 100.0 ** -(torch.arange(0, 8, 2) / 8)
    expected = turned(qkv[:, :, 0], angles.cos(), angles.sin(), torch.arange(6), False)
    torch.testing.assert_close(whole[:, :, 0], expected.float())
    assert not layer.state_dict()


def test_the_layer_in_half_precision_has_tables_of_float32_angles() -> None:
    layer = RotaryEmbedding(8).bfloat16()
    q = torch.ones(1, 3000, 1, 8, dtype=torch.bfloat16)
    found = layer(torch.stack((q, q, q), dim=2))[:, :, 0]
    angles = torch.arange(3000)[:, None] * 10000.0 ** -(torch.arange(0, 8, 2) / 8)
    exact = turned(q, angles.cos(), angles.sin(), torch.arange(3000), False)
    eager = exact.to(torch.bfloat16)
    assert (found.double() - exact).abs().max() <= error_budget(eager, exact)


def test_tables_made_in_inference_mode_are_not_trained_with() -> None:
    layer, qkv = RotaryEmbedding(8), torch.randn(1, 6, 3, 2, 8)
    with torch.inference_mode():
        layer(qkv.clone())
    trained = qkv.clone().requires_grad_()
    layer(trained * 1.0).sum().backward()
    assert trained.grad is not None


WRONG: dict[str, Any] = {
    "x must be (B, S, H, D)": dict(x=torch.zeros(4, 2, 8)),
    "x must be (total, H, D)": dict(cu_seqlens=torch.tensor([0, 4])),
    "cos and sin must be": dict(sin=torch.zeros(9, 3)),
    "at most the head dim": dict(cos=torch.zeros(9, 5), sin=torch.zeros(9, 5)),
    "seqlen_offsets must be": dict(seqlen_offsets=torch.zeros(3, dtype=torch.int32)),
    "positions 6 to 9": dict(seqlen_offsets=6),
    "positions -1 to 2": dict(seqlen_offsets=-1),
    "positions 0 to 10": dict(seqlen_offsets=torch.tensor([0, 7])),
    "cu_seqlens must go from 0": dict(x=torch.zeros(5, 2, 8), cu_seqlens=torch.tensor([0, 4])),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_arguments_are_named(message: str) -> None:
    arguments = dict(x=torch.zeros(2, 4, 2, 8), cos=torch.zeros(9, 4), sin=torch.zeros(9, 4))
    with pytest.raises(ValueError, match="apply_rotary: ") as raised:
        apply_rotary(**{**arguments, **WRONG[message]})
    assert message in str(raised.value)


def test_wrong_packs_are_named() -> None:
    cos, sin = tables(4, 4)
    with pytest.raises(ValueError, match="apply_rotary_emb_qkv_: qkv must be"):
        apply_rotary_emb_qkv_(torch.zeros(2, 4, 6, 8), cos, sin)
    with pytest.raises(ValueError, match="apply_rotary_emb_qkv_: qkv must be"):
        apply_rotary_emb_qkv_(torch.zeros(2, 4, 6, 8), cos, sin, num_heads_q=3)
    with pytest.raises(ValueError, match="apply_rotary_emb_kv_: kv must be"):
        apply_rotary_emb_kv_(torch.zeros(2, 4, 3, 2, 8), cos, sin)
    with pytest.raises(ValueError, match="RotaryEmbedding: a seqlen_offset in a tensor"):
        RotaryEmbedding(8)(torch.zeros(2, 4, 3, 2, 8), seqlen_offset=torch.zeros(2))
