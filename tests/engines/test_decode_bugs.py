"""Bugs that others' decode over a cache has had, each by name, on the portable engine."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import flashmetal
from flashmetal.engines import key_value, panels, portable, stock
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs, Request
from flashmetal.testing import assert_matches_reference, make_inputs

from ..operations import Operations


def test_paged_decode_equals_attention_over_the_gathered_cache() -> None:
    """The case, and the largest error allowed, of the paged-attention pull request."""
    problem, inputs = make_inputs(
        batch=4, seqlen_q=1, seqlen_k=50, heads_q=16, head_dim=128, page_size=16
    )
    assert inputs.block_table is not None
    o, _ = portable.forward(problem, inputs)
    k, v = (x[inputs.block_table].flatten(1, 2)[:, :50].double() for x in (inputs.k, inputs.v))
    exact = flashmetal.flash_attn_func(inputs.q.double(), k, v, impl="reference")
    assert float((o - exact).abs().max()) <= 1.7e-6


@pytest.mark.parametrize("page_stride", [1 << 30, (1 << 31) + 8], ids=["pages", "rows"])
def test_offsets_past_32_bits(page_stride: int) -> None:
    """Strides in 32 bits read another page. The memory between the pages is never touched."""
    pages, size, heads, dim = 3, 8, 2, 32
    rows = size * heads * dim
    # torch.empty may fill what it allocates, and so touch gigabytes.
    memory = torch.UntypedStorage(2 * (page_stride * (pages - 1) + rows))
    strides = page_stride, heads * dim, dim, 1
    cache = torch.empty(0, dtype=torch.bfloat16).set_(memory, 0, (pages, size, heads, dim), strides)
    cache.copy_(torch.randn(cache.shape, generator=torch.Generator().manual_seed(0)))
    q = torch.randn(1, 1, 4, dim, dtype=torch.bfloat16)
    table, used = (torch.tensor(x, dtype=torch.int32) for x in ([[2, 0, 1]], [21]))
    inputs = AttentionInputs(q, cache, cache, seqused_k=used, block_table=table)
    problem = AttentionProblem.of(inputs, Request("test"))
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)
    new = torch.ones(1, 1, heads, dim, dtype=torch.bfloat16)
    flashmetal.flash_attn_with_kvcache(
        q, cache, cache, new, new, cache_seqlens=used, block_table=table
    )
    assert torch.equal(cache[1, 5], new[0, 0])


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025])
def test_keys_past_the_end_are_never_read(length: int) -> None:
    """Two-pass decode read out of bounds from 1024 keys on."""
    problem, inputs = make_inputs(
        seqlen_q=1, seqlen_k=1040, seqused_k=(length,), heads_q=8, heads_k=2, page_size=16
    )
    assert bool(inputs.k.isnan().any())
    assert_matches_reference(*portable.forward(problem, inputs), problem, inputs)


def test_two_decodes_give_equal_bits() -> None:
    problem, inputs = make_inputs(
        batch=3, seqlen_q=1, seqlen_k=5000, heads_q=8, heads_k=2, page_size=64
    )
    first, second = portable.forward(problem, inputs), portable.forward(problem, inputs)
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("groups", [1, 4, 8])
def test_query_heads_of_a_group_share_one_read(groups: int) -> None:
    length, dim = 600, 64
    problem, inputs = make_inputs(
        seqlen_q=1, seqlen_k=length, heads_q=2 * groups, heads_k=2, head_dim=dim, page_size=8
    )
    with Operations() as mode:
        portable.forward(problem, inputs)
    assert mode.read == 2 * length * 2 * dim


@pytest.mark.parametrize("are_short", [True, False], ids=["short", "long"])
@pytest.mark.parametrize("page_size", [0, 16])
def test_decodes_of_many_sequences_share_one_softmax(
    page_size: int, are_short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One by one they cost a dozen small operations each, more than eager's padded batch.

    Short ones share the products too: each small one wakes all threads.
    """
    lengths = tuple(range(20, 148, 4))
    if not are_short:
        monkeypatch.setitem(key_value._GATHERED, True, 1 << 12)
    problem, inputs = make_inputs(
        lengths_q=(1,) * 32, lengths_k=lengths, window_right=0, page_size=page_size
    )
    for engine in (portable, stock):
        with Operations() as mode:
            o, lse = engine.forward(problem, inputs)
        counts = mode.products, mode.exponentials, mode.fused
        if are_short:
            assert counts == ((2, 1, 0) if engine is portable else (0, 0, 1))
        else:
            assert mode.products >= 2 * len(lengths)
            assert mode.exponentials == 1
        assert_matches_reference(o, lse, problem, inputs)


def test_one_long_sequence_does_not_widen_short_ones() -> None:
    """The scores of a group are at most half empty, but for a few."""
    lengths = (50,) * 20 + (4000,) + (50,) * 20
    problem, inputs = make_inputs(
        lengths_q=(1,) * 41, lengths_k=lengths, heads_q=2, heads_k=1, head_dim=8, page_size=16
    )
    with Operations() as mode:
        portable.forward(problem, inputs)
    assert mode.largest <= max(2 * 2 * (sum(lengths) + 4096), inputs.k.numel())


class KernelCalls(TorchDispatchMode):
    """The keys that each call of torch's fused kernel was given, as shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[tuple[int, ...]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default:
            self.keys.append(tuple(args[1].shape))
        return func(*args, **(kwargs or {}))


# Keys of five sequences in a cache of 2400, and those that one call is given together.
PADDED: dict[str, tuple[dict[str, Any], int]] = {
    "padded left": ({"leftpad_k": (300, 0, 1611, 599, 0)}, 2400),
    "a static cache": ({"seqused_k": (520, 400, 530, 700, 1), "leftpad_k": (9, 0, 5, 690, 0)}, 700),
    "one is empty": ({"seqused_k": (520, 0, 530, 700, 600)}, 0),
    "one is long": ({"seqused_k": (2400, 3, 5, 2, 1)}, 0),
}


@pytest.mark.parametrize("case", PADDED)
@pytest.mark.parametrize("sinks", [False, True])
def test_a_padded_decode_is_one_call(case: str, sinks: bool) -> None:
    """What lies in the padding is only masked, unless it is not finite: then it is not touched."""
    lengths, together = PADDED[case]
    problem, inputs = make_inputs(
        batch=5, seqlen_q=1, seqlen_k=2400, heads_q=6, heads_k=2, sinks=sinks, **lengths
    )
    assert bool(inputs.v.isnan().any())
    assert_matches_reference(*stock.forward(problem, inputs), problem, inputs)
    finite = inputs._replace(k=inputs.k.nan_to_num(7.0), v=inputs.v.nan_to_num(7.0))
    with KernelCalls() as mode:
        o, lse = stock.forward(problem, finite)
    assert_matches_reference(o, lse, problem, finite)
    whole = (5, 2, together, problem.head_dim)
    assert mode.keys == [whole] if together else (5, 2) not in {shape[:2] for shape in mode.keys}


@pytest.mark.parametrize("shuffled", [False, True], ids=["neighbours", "scattered"])
def test_the_cache_is_never_gathered_whole(shuffled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neighbouring keys are read where they lie, short runs gathered a panel at a time."""
    small = panels.Tiling(block_q=16, scores=1, least_keys=64)
    monkeypatch.setattr(panels, "tiling", lambda problem: small)
    pages, size, heads, dim = 512, 4, 2, 32
    cache = torch.randn(pages, size, heads, dim)
    order = torch.randperm(pages) if shuffled else torch.arange(pages)
    inputs = AttentionInputs(torch.randn(1, 1, 4, dim), cache, cache)
    inputs = inputs._replace(block_table=order[None].to(torch.int32))
    problem = AttentionProblem.of(inputs, Request("test"))
    with Operations() as mode:
        portable.forward(problem, inputs)
    panel = (64 + size) * heads * dim
    assert mode.largest <= (panel if shuffled else max(64 * 4, 4 * dim))
    assert math.prod(cache.shape) > 20 * panel


@pytest.mark.parametrize("page_size", [0, 16])
def test_torchs_default_device_is_not_that_of_the_call(page_size: int) -> None:
    """A mask made there held nothing."""
    problem, inputs = make_inputs(
        batch=2, seqlen_q=1, seqlen_k=64, seqused_k=(40, 64), page_size=page_size
    )
    for engine in (portable, stock):
        with torch.device("meta"):
            o, lse = engine.forward(problem, inputs)
        assert_matches_reference(o, lse, problem, inputs)


@pytest.mark.parametrize("most", [1 << 20, 1], ids=["copied", "in place"])
def test_a_softcap_caps_a_score_of_minus_infinity(
    most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is no key that is absent."""
    monkeypatch.setitem(key_value._GATHERED, True, most)
    problem, inputs = make_inputs(
        batch=2, seqlen_q=1, seqlen_k=40, seqused_k=(9, 40), softcap=2.0, page_size=16
    )
    inputs.q.abs_()
    inputs.k[:, 3, :, 0] = -torch.inf
    o, lse = portable.forward(problem, inputs)
    assert_matches_reference(o, lse, problem, inputs)


@pytest.mark.parametrize(("most", "products"), [(4096, 2), (4095, 6)])
def test_a_limit_of_copies_counts_values_and_not_bytes(
    most: int, products: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 4 bits two share a byte. Of 64 rows 63 are read at a time then: in three runs."""
    monkeypatch.setitem(key_value._GATHERED, True, most)
    problem, inputs = make_inputs(
        batch=2, seqlen_q=1, seqlen_k=32, heads_q=1, page_size=32, k_format="int4", v_format="int4"
    )
    with Operations() as mode:
        o, lse = portable.forward(problem, inputs)
    assert mode.products == products
    assert_matches_reference(o, lse, problem, inputs)
