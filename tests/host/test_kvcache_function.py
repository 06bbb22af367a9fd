"""flash_attn_with_kvcache against one sequence at a time in plain tensors."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import flashmetal
from flashmetal.cache.formats import dequantise, quantise
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs, Request
from flashmetal.testing import assert_matches_reference

HEADS_Q, HEADS_K, DIM, ROTARY, CAPACITY = 4, 2, 32, 8, 40


class Call(NamedTuple):
    """One call, its keyword arguments, and what the caches held before, a sequence at a time."""

    arguments: dict[str, Any]
    keys: list[Tensor]  # (CAPACITY, Hk, D)
    values: list[Tensor]


def make_call(
    lengths: tuple[int, ...],
    new: int,
    page_size: int = 0,
    indexed: bool = False,
    rows: int = 2,
    rotary: bool = True,
    **options: Any,
) -> Call:
    """A call on sequences of ``lengths`` keys, in pages or at chosen rows of the cache."""
    batch = len(lengths)
    normal = torch.Generator().manual_seed(sum(lengths) + new)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=normal)

    count = -(-CAPACITY // page_size) if page_size else 1
    pages, size = batch * count + 2, page_size or CAPACITY
    arguments: dict[str, Any] = {
        "q": randn(batch, rows, HEADS_Q, DIM),
        "k_cache": randn(pages, size, HEADS_K, DIM),
        "v_cache": randn(pages, size, HEADS_K, DIM),
        "cache_seqlens": torch.tensor(lengths, dtype=torch.int32),
        **options,
    }
    if new:
        arguments |= {"k": randn(batch, new, HEADS_K, DIM), "v": randn(batch, new, HEADS_K, DIM)}
    if new and rotary:
        arguments |= {"rotary_cos": randn(60, ROTARY // 2), "rotary_sin": randn(60, ROTARY // 2)}
    order = torch.randperm(pages, generator=normal).to(torch.int32)
    table = torch.arange(batch)[:, None]
    if page_size:
        table = arguments["block_table"] = order[: batch * count].view(batch, count)
    elif indexed:
        arguments["cache_batch_idx"] = order[:batch]
        table = order[:batch, None]
    else:
        arguments |= {name: arguments[name][:batch] for name in ("k_cache", "v_cache")}
    caches = arguments["k_cache"], arguments["v_cache"]
    keys, values = ([x[row].flatten(0, 1)[:CAPACITY].clone() for row in table] for x in caches)
    return Call(arguments, keys, values)


def rotated(x: Tensor, call: Call, positions: list[int]) -> Tensor:
    """x (S, H, D), each row turned pair by pair."""
    x, half = x.clone(), ROTARY // 2
    cos, sin = call.arguments["rotary_cos"], call.arguments["rotary_sin"]
    for row, position in zip(x, positions, strict=True):
        for pair in range(half):
            interleaved = call.arguments.get("rotary_interleaved", True)
            a, b = (2 * pair, 2 * pair + 1) if interleaved else (pair, pair + half)
            c, s = cos[position, pair], sin[position, pair]
            row[:, a], row[:, b] = row[:, a] * c - row[:, b] * s, row[:, a] * s + row[:, b] * c
    return x


def expected(call: Call, b: int) -> tuple[AttentionInputs, Request, Tensor, Tensor]:
    """Sequence ``b`` as a call of its own, and its keys and values after the append."""
    given, length = call.arguments, int(call.arguments["cache_seqlens"][b])
    q, k, v = given["q"][b], call.keys[b].clone(), call.values[b].clone()
    if "k" in given:
        new, count = given["k"][b], given["k"].shape[1]
        local = given.get("causal", False) or given.get("window_size", (-1, -1)) != (-1, -1)
        if "rotary_cos" in given:
            new = rotated(new, call, [length + t for t in range(count)])
            q = rotated(q, call, [length + (i if local else 0) for i in range(len(q))])
        k[length : length + count], v[length : length + count] = new, given["v"][b]
        length += count
    first = int(given["cache_leftpad"][b]) if "cache_leftpad" in given else 0
    inputs = AttentionInputs(q[None], k[None, first:length], v[None, first:length])
    inputs = inputs._replace(alibi_slopes=given.get("alibi_slopes"), sinks=given.get("s_aux"))
    left, right = given.get("window_size", (-1, -1))
    request = Request(
        "test",
        scale=given.get("softmax_scale"),
        causal=given.get("causal", False),
        window_left=left,
        window_right=right,
        softcap=given.get("softcap", 0.0),
    )
    return inputs, request, k, v


def check(call: Call) -> None:
    out, lse = flashmetal.flash_attn_with_kvcache(**call.arguments, return_softmax_lse=True)
    given = call.arguments
    for b in range(len(call.keys)):
        table = torch.tensor([b])
        if "cache_batch_idx" in given:
            table = given["cache_batch_idx"][b : b + 1]
        table = given["block_table"][b] if "block_table" in given else table
        inputs, request, keys, values = expected(call, b)
        problem = AttentionProblem.of(inputs, request)
        assert_matches_reference(out[b : b + 1], lse[b : b + 1], problem, inputs)
        for cache, rows in (("k_cache", keys), ("v_cache", values)):
            assert torch.equal(given[cache][table].flatten(0, 1)[:CAPACITY], rows)


LENGTHS = (0, 7, 33)
CALLS: dict[str, dict[str, Any]] = {
    "contiguous": {},
    "chosen rows": {"indexed": True},
    "pages": {"page_size": 8},
    "pages of three": {"page_size": 3},
    "causal": {"causal": True, "page_size": 8},
    "window": {"window_size": (5, 0), "page_size": 16},
    "half-split rotary": {"rotary_interleaved": False, "causal": True},
    "no rotary": {"rotary": False, "causal": True},
    "softcap": {"softcap": 2.0},
    "alibi": {"alibi_slopes": torch.tensor([0.5, 0.25, 0.1, 0.0]), "causal": True},
    "sinks": {"s_aux": torch.tensor([0.5, -1.0, 2.0, 0.0]), "page_size": 8},
    "scale": {"softmax_scale": 0.3},
    "one query": {"rows": 1, "page_size": 8, "causal": True},
    "splits asked for": {"num_splits": 4, "page_size": 8},
    "left padding": {"cache_leftpad": torch.tensor([0, 3, 20], dtype=torch.int32)},
    "left padding, rotary by position": {
        "cache_leftpad": torch.tensor([0, 3, 20], dtype=torch.int32),
        "page_size": 8,
        "causal": True,
    },
}


@pytest.mark.parametrize("new", [0, 1, 4])
@pytest.mark.parametrize("case", CALLS)
def test_it_appends_and_attends(case: str, new: int) -> None:
    check(make_call(LENGTHS, new, **CALLS[case]))


@settings(max_examples=settings().max_examples * 3 // 5)
@given(
    lengths=st.lists(st.integers(0, 34), min_size=1, max_size=4).map(tuple),
    new=st.integers(0, 6),
    page_size=st.sampled_from((0, 1, 5, 8, 64)),
    indexed=st.booleans(),
    rows=st.integers(1, 5),
    rotary=st.booleans(),
    causal=st.booleans(),
    window=st.sampled_from(((-1, -1), (3, 1), (-1, 2), (9, -1))),
    interleaved=st.booleans(),
)
def test_any_call(causal: bool, window: tuple[int, int], interleaved: bool, **shape: Any) -> None:
    if shape["page_size"] == 64:
        shape["page_size"] = CAPACITY
    check(make_call(**shape, causal=causal, window_size=window, rotary_interleaved=interleaved))


def test_a_budget_does_not_rest_on_few_roundings() -> None:
    """Eager's 384 results err by a quarter of what another order of summation may."""
    check(make_call((3, 11), 3, rows=3, window_size=(-1, 2), rotary_interleaved=False))


def test_an_int_counts_for_every_sequence() -> None:
    call = make_call((9, 9), 2, page_size=8, causal=True)
    again = make_call((9, 9), 2, page_size=8, causal=True)
    again.arguments["cache_seqlens"] = 9
    results = [flashmetal.flash_attn_with_kvcache(**x.arguments) for x in (call, again)]
    assert torch.equal(*results)


def test_without_lengths_the_whole_cache_is_seen() -> None:
    call = make_call((CAPACITY, CAPACITY), 0, causal=True)
    call.arguments["impl"] = "reference"  # engines serve the two in other orders of summation
    expected = flashmetal.flash_attn_with_kvcache(**call.arguments)
    del call.arguments["cache_seqlens"]
    assert torch.equal(flashmetal.flash_attn_with_kvcache(**call.arguments), expected)


@pytest.mark.parametrize("page_size", [0, 8])
@pytest.mark.parametrize("formats", [("int8", "int8"), ("fp8", "int4"), ("int4", "fp8")])
def test_new_keys_are_quantised_into_the_cache(formats: tuple[str, str], page_size: int) -> None:
    call = make_call(LENGTHS, 3, page_size, rotary=False, causal=True)
    given, rows = dict(call.arguments), {}
    for name, cache_format in zip("kv", formats, strict=True):
        codes, scale = quantise(given[f"{name}_cache"], cache_format)
        given |= {f"{name}_cache": codes, f"{name}_scale": scale}
    flashmetal.flash_attn_with_kvcache(**given)
    # The codes written are those of quantise: the dequantised cache behaves as a dense one.
    for name in "kv":
        values = dequantise(given[f"{name}_cache"], given[f"{name}_scale"], torch.float32)
        rows[f"{name}_cache"] = values
        for b, length in enumerate(LENGTHS):
            table = given["block_table"][b] if page_size else torch.tensor([b])
            new = given[name][b]
            written = values[table].flatten(0, 1)[length : length + 3]
            codes = quantise(new, formats["kv".index(name)])
            assert torch.equal(written, dequantise(*codes, torch.float32))
    length = given["cache_seqlens"] + 3
    options = {"cache_seqlens": length, "block_table": given.get("block_table"), "causal": True}
    options["impl"] = "portable"
    dense = flashmetal.flash_attn_with_kvcache(given["q"], **rows, **options)
    scales = {name: given[name] for name in ("k_scale", "v_scale")}
    caches = {name: given[name] for name in ("k_cache", "v_cache")}
    quantised = flashmetal.flash_attn_with_kvcache(given["q"], **caches, **options, **scales)
    assert torch.equal(quantised, dense)


def test_a_missing_page_hides_its_keys() -> None:
    call = make_call((33,), 0, page_size=8)
    table = call.arguments["block_table"]
    table[0, 1] = -1
    out, lse = flashmetal.flash_attn_with_kvcache(
        **call.arguments, causal=True, return_softmax_lse=True
    )
    kept = torch.cat([torch.arange(8), torch.arange(16, 33)])
    k, v = (x[0][kept][None] for x in (call.keys, call.values))
    inputs, request = AttentionInputs(call.arguments["q"], k, v), Request("test", causal=True)
    assert_matches_reference(out, lse, AttentionProblem.of(inputs, request), inputs)
    table.fill_(-1)
    out, lse = flashmetal.flash_attn_with_kvcache(**call.arguments, return_softmax_lse=True)
    assert not out.any()
    assert torch.all(lse == -torch.inf)


@pytest.mark.parametrize("causal", [True, False])
def test_flash_attn_3_packs_prompts_and_decodes(causal: bool) -> None:
    counts, lengths = (5, 1, 0, 3), (0, 20, 9, 30)
    call = make_call(lengths, 5, page_size=8, rows=5, causal=causal)
    given = dict(call.arguments)
    starts = torch.tensor([0, 5, 6, 6, 9], dtype=torch.int32)
    packed = {
        name: torch.cat([given[name][b, :count] for b, count in enumerate(counts)])
        for name in ("q", "k", "v")
    }
    caches = {name: given[name].clone() for name in ("k_cache", "v_cache")}
    rest = {name: given[name] for name in ("rotary_cos", "rotary_sin", "cache_seqlens", "causal")}
    out, lse = flashmetal.flash_attn_3_with_kvcache(
        **packed,
        **caches,
        **rest,
        page_table=given["block_table"],
        cu_seqlens_q=starts,
        cu_seqlens_k_new=starts,
        max_seqlen_q=5,
        return_softmax_lse=True,
    )
    for b, count in enumerate(counts):
        alone = {name: given[name][b : b + 1] for name in ("cache_seqlens", "block_table")}
        new = {name: given[name][b : b + 1, :count] for name in ("q", "k", "v")}
        if count == 0:
            continue
        one, one_lse = flashmetal.flash_attn_with_kvcache(
            **{**given, **alone, **new}, return_softmax_lse=True
        )
        rows = slice(int(starts[b]), int(starts[b + 1]))
        assert torch.equal(out[rows], one[0])
        assert torch.equal(lse[:, rows], one_lse[0])
    for name, cache in caches.items():
        assert torch.equal(cache, given[name])


def test_packed_queries_of_a_contiguous_cache() -> None:
    call = make_call((7, 20), 0, rows=3, causal=True)
    given = dict(call.arguments)
    starts = torch.tensor([0, 3, 6], dtype=torch.int32)
    out = flashmetal.flash_attn_3_with_kvcache(
        given.pop("q").flatten(0, 1), **given, cu_seqlens_q=starts, impl="portable"
    )
    expected = flashmetal.flash_attn_with_kvcache(**call.arguments, impl="portable")
    assert torch.equal(out, expected.flatten(0, 1))


def test_rotary_positions_can_be_given() -> None:
    call = make_call((7, 20), 2, causal=True)
    given = dict(call.arguments)
    positions = torch.tensor([3, 11], dtype=torch.int32)
    k_cache = given["k_cache"].clone()
    flashmetal.flash_attn_3_with_kvcache(**{**given, "k_cache": k_cache}, rotary_seqlens=positions)
    for b, (length, start) in enumerate(((7, 3), (20, 11))):
        new = rotated(given["k"][b], call, [start, start + 1])
        assert torch.equal(k_cache[b, length : length + 2], new)
