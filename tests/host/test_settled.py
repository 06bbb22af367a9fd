"""Lengths of a step are read once for all layers, and never taken for those of another."""

from __future__ import annotations

import gc
import pickle
import weakref
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from flashmetal import (
    CacheShape,
    CacheStep,
    PagedKVCache,
    flash_attn_3_with_kvcache,
    flash_attn_func,
    flash_attn_varlen_func,
    flash_attn_with_kvcache,
    value_checks,
)
from flashmetal.engines import append, key_value, panels, sequences
from flashmetal.engines.places import Columns
from flashmetal.problem import AttentionProblem
from flashmetal.request import AttentionInputs, Request
from flashmetal.settled import once, settle

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
SHAPE = CacheShape(layers=3, pages=12, page_size=4, heads=2, head_dim=8, head_dim_v=8)


class Doubled:
    """Twice the lengths, and how often that was asked for."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *lengths: Tensor) -> Tensor:
        def make() -> Tensor:
            self.calls += 1
            return sum(lengths) * torch.tensor(2)

        return once(lengths, "doubled", make)


def test_settled_lengths_are_read_once_and_others_always() -> None:
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    for _ in range(2):
        assert doubled(lengths).tolist() == [6, 8]
    assert doubled.calls == 2
    settle(lengths)
    for _ in range(2):
        assert doubled(lengths).tolist() == [6, 8]
        assert doubled(doubled(lengths)).tolist() == [12, 16]  # what is made is settled too
    assert doubled.calls == 4


def test_a_write_makes_them_common_again() -> None:
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    settle(lengths)
    assert doubled(lengths).tolist() == [6, 8]
    lengths += 1
    assert doubled(lengths).tolist() == [8, 10]
    lengths += 1
    assert doubled(lengths).tolist() == [10, 12]
    settle(lengths)
    assert [doubled(lengths).tolist() for _ in range(2)] == [[10, 12]] * 2
    assert doubled.calls == 4


def test_what_belongs_to_two_steps_is_not_kept() -> None:
    doubled, a, b, c = Doubled(), torch.tensor([1]), torch.tensor([2]), torch.tensor([3])
    settle(a, b)
    settle(c)
    pairs = (a, b), (a, c), (c, a), (a, b), (a, c)
    assert [doubled(*pair).item() for pair in pairs] == [6, 8, 8, 6, 8]
    assert doubled.calls == 4


def test_modes_keep_apart() -> None:
    """Tensors of inference mode cannot be saved for a backward, fake and wrapped ones have no
    values."""
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    settle(lengths)
    with torch.inference_mode():
        assert doubled(lengths).is_inference()
    assert not doubled(lengths).is_inference()
    with FakeTensorMode(allow_non_fake_inputs=True):
        doubled(lengths)
    functional: Any = torch.func.functionalize(lambda x: x + doubled(lengths))
    functional(torch.ones(2))
    assert doubled(lengths).tolist() == [6, 8]
    assert doubled.calls == 4


class Stream(NamedTuple):
    cuda_stream: int


def test_streams_keep_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    settle(lengths)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for stream in (0, 7, 0, 7):
        monkeypatch.setattr(torch.cuda, "current_stream", partial(Stream, stream))
        doubled(lengths)
    assert doubled.calls == 2


def test_a_captured_graph_keeps_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    settle(lengths)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", partial(Stream, 0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    made = doubled(lengths)
    settle(made)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    for given, calls in ((lengths, 1), (made, 2)):
        before = doubled.calls
        doubled(given)
        doubled(given)
        assert doubled.calls == before + calls


@needs_cuda
def test_two_streams() -> None:
    doubled, lengths = Doubled(), torch.tensor([3, 4], device="cuda")
    settle(lengths)
    streams = [torch.cuda.Stream() for _ in range(2)]
    for stream in streams * 2:
        stream.wait_stream(torch.cuda.default_stream())
        with torch.cuda.stream(stream):
            assert doubled(lengths).tolist() == [6, 8]
    assert doubled.calls == 2


@needs_cuda
def test_a_cuda_graph() -> None:
    """What is made in a capture holds nothing before a replay, and something else after each."""
    doubled, lengths = Doubled(), torch.tensor([3, 4], device="cuda")
    settle(lengths)
    graph, tripled = torch.cuda.CUDAGraph(), torch.zeros_like(lengths)
    with torch.cuda.graph(graph):
        doubled(lengths)
        torch.mul(lengths, 3, out=tripled)
        settle(tripled)
    assert doubled(lengths).tolist() == [6, 8]
    for more in range(2):
        graph.replay()
        assert doubled(tripled).tolist() == [18 + 6 * more, 24 + 6 * more]
        lengths += 1


def test_copies_are_common() -> None:
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    settle(lengths)
    doubled(doubled(lengths))
    for copy in (
        pickle.loads(pickle.dumps(lengths)),
        deepcopy(lengths),
        deepcopy(doubled(lengths)),
    ):
        before = doubled.calls
        doubled(copy)
        doubled(copy)
        assert doubled.calls == before + 2


def test_what_is_kept_goes_with_the_lengths() -> None:
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    settle(lengths)
    made = weakref.ref(doubled(lengths))
    gc.disable()
    try:
        assert made() is not None
        del lengths
        assert made() is None
    finally:
        gc.enable()


def clones(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: x.clone() if isinstance(x, Tensor) else x for name, x in arguments.items()}


def attend(cache: PagedKVCache, step: CacheStep, layer: int, **changes: Any) -> Tensor:
    rows = int(step.cu_seqlens[-1])
    torch.manual_seed(layer)
    q, k, v = (torch.randn(rows, heads, SHAPE.head_dim) for heads in (4, 2, 2))
    arguments = cache.layer(layer) | step.arguments() | changes
    with torch.inference_mode():
        return flash_attn_3_with_kvcache(q, k=k, v=v, causal=True, **arguments)


def test_a_step_is_read_by_its_first_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decodes beside a prompt, some in scattered pages."""
    reads = {"keys": 0, "rows": 0}

    def counted(name: str, function: Any) -> Any:
        def call(*arguments: Any) -> Any:
            reads[name] += 1
            return function(*arguments)

        return call

    ours, theirs = PagedKVCache(SHAPE), PagedKVCache(SHAPE)
    for cache in (ours, theirs):
        for length in (7, 5, 0):
            number = cache.allocate()
            cache.append(number, torch.ones(3, length, 2, 8), torch.ones(3, length, 2, 8))
    counts = dict(zip(ours.sequences, (1, 1, 6), strict=True))
    monkeypatch.setattr(
        sequences, "_cached_sequences", counted("keys", sequences._cached_sequences)
    )
    monkeypatch.setattr(append, "_placed", counted("rows", append._placed))
    step, other = ours.step(counts), theirs.step(counts)
    found = [attend(ours, step, layer) for layer in range(SHAPE.layers)]
    assert reads == {"keys": 1, "rows": 1}
    # Copies of the step's tensors are a caller's own: every layer reads them.
    own = {name: x.clone() if isinstance(x, Tensor) else x for name, x in other.arguments().items()}
    expected = [attend(theirs, other, layer, **own) for layer in range(SHAPE.layers)]
    assert reads == {"keys": 4, "rows": 4}
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b)
    assert all(torch.equal(ours.layer(n)["k_cache"], theirs.layer(n)["k_cache"]) for n in range(3))


Q, NEW = torch.randn(3, 1, 4, 8), torch.randn(3, 3, 2, 8)
CACHE = torch.randn(2, 48, 2, 8)


def paged(size: int, apart: bool = False) -> dict[str, Any]:
    """A cache in pages of so many keys, side by side or apart."""
    pages = CACHE.clone().unflatten(1, (-1, size))
    k, v = torch.cat((pages, pages), 2)[:, :, :size] if apart else pages
    return {"k_cache": k, "v_cache": v}


def appended(rows: int) -> dict[str, Any]:
    return {"k": NEW[:, :rows], "v": NEW[:, :rows], **paged(4)}


# Calls on the same lengths, of which one must not be given what was made for the other.
PAIRS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[], dict[str, Any]]]] = {
    "append, then the past": (lambda: appended(2), lambda: paged(4)),
    "rows to append": (lambda: appended(1), lambda: appended(3)),
    "queries": (lambda: paged(4), lambda: {"q": Q.repeat(1, 3, 1, 1), **paged(4)}),
    "page size": (lambda: paged(4), lambda: paged(8)),
    "pages apart": (lambda: paged(4), lambda: paged(4, apart=True)),
    "window": (lambda: paged(4), lambda: {"window_size": (2, 0), **paged(4)}),
}


@pytest.mark.parametrize("most", [1 << 20, 1], ids=["copied", "in place"])
@pytest.mark.parametrize("swapped", [False, True], ids=["", "swapped"])
@pytest.mark.parametrize("pair", PAIRS)
def test_one_call_is_not_given_what_another_read(
    pair: str, swapped: bool, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(key_value._GATHERED, True, most)
    table = torch.tensor([[4, 1, 2], [0, 3, 5], [1, 0, 3]], dtype=torch.int32)
    if pair.endswith(("past", "append")):
        table[2] = torch.tensor([6, 8, 7])
    seqlens = torch.tensor([9, 5, 2], dtype=torch.int32)
    settle(table, seqlens)
    lengths = {"block_table": table, "cache_seqlens": seqlens}
    for make in PAIRS[pair][::-1] if swapped else PAIRS[pair]:
        found, expected = (
            flash_attn_with_kvcache(**{"q": Q, "causal": True, **make()}, **each)
            for each in (lengths, clones(lengths))
        )
        assert torch.equal(found, expected)


@pytest.mark.parametrize("rows", [1, 3], ids=["decode", "prefill"])
def test_lengths_meet_keys_of_another_count(rows: int) -> None:
    padding = torch.tensor([2, 0, 5], dtype=torch.int32)
    settled = padding.clone()
    settle(settled)
    for keys in (8, 6, 8):
        q, k, v = (torch.randn(3, n, 2, 8) for n in (rows, keys, keys))
        found, expected = (
            flash_attn_func(q, k, v, causal=True, leftpad_k=x) for x in (settled, padding)
        )
        assert torch.equal(found, expected)


def test_rows_are_checked_again() -> None:
    starts = torch.tensor([0, 4, 6], dtype=torch.int32)
    settle(starts)
    x = torch.randn(7, 2, 8)
    call = partial(flash_attn_varlen_func, max_seqlen_q=4, max_seqlen_k=4)
    lengths = {"cu_seqlens_q": starts, "cu_seqlens_k": starts}
    call(x[:6], x[:6], x[:6], **lengths)
    with pytest.raises(ValueError, match="to the 7 rows of q"):
        call(x, x[:6], x[:6], **lengths)
    with pytest.raises(ValueError, match="to the 5 rows of k"):
        call(x[:6], x[:5], x[:5], **lengths)
    with pytest.raises(ValueError, match="max_seqlen_q must be at least"):
        flash_attn_varlen_func(x[:6], x[:6], x[:6], **lengths, max_seqlen_q=3, max_seqlen_k=4)


def test_a_check_that_waits_is_made_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of a device: its values are read under validate=True alone."""
    starts, x = torch.tensor([0, 4, 5], dtype=torch.int32), torch.randn(6, 2, 8)
    problem = AttentionProblem.of(
        AttentionInputs(x, x, x, cu_seqlens_q=starts, cu_seqlens_k=starts), Request("f", 4, 4)
    )
    settle(starts)
    inputs = AttentionInputs(x, x, x, cu_seqlens_q=starts, cu_seqlens_k=starts)
    monkeypatch.setattr(value_checks, "is_readable", lambda lengths, validate: validate)
    value_checks.check_lengths(problem, inputs, Request("f", 4, 4))
    with pytest.raises(ValueError, match="to the 6 rows of q"):
        value_checks.check_lengths(problem, inputs, Request("f", 4, 4, validate=True))


def test_what_is_right_for_one_append_is_checked_for_another() -> None:
    table = torch.tensor([[0, 1], [2, 3], [4, 5]], dtype=torch.int32)
    seqlens = torch.tensor([6, 5, 0], dtype=torch.int32)
    settle(table, seqlens)
    lengths = {"block_table": table, "cache_seqlens": seqlens, "causal": True}

    def append(rows: int, positions: int, caches: dict[str, Any]) -> None:
        turned = {f"rotary_{name}": torch.ones(positions, 2) for name in ("cos", "sin")}
        new = {"k": NEW[:, :rows], "v": NEW[:, :rows]}
        flash_attn_with_kvcache(Q, **caches, **new, **turned, **lengths)

    append(2, 8, paged(4))
    with pytest.raises(ValueError, match="3 more do not fit"):
        append(3, 9, paged(4))
    with pytest.raises(ValueError, match="rotary_cos has 7 positions"):
        append(2, 7, paged(4))
    with pytest.raises(ValueError, match="do not fit"):
        append(2, 8, {name: x[:12] for name, x in paged(3).items()})
    few = {name: x[:5] for name, x in paged(4).items()}
    before = clones(few)
    with pytest.raises(ValueError, match="must hold pages from 0 to 4"):
        append(2, 8, few)
    assert all(torch.equal(few[name], before[name]) for name in few)


def test_parts_of_many_columns_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt over scattered pages asks for other columns in every block of rows."""
    small = panels.Tiling(block_q=8, scores=64, least_keys=8)
    monkeypatch.setattr(panels, "tiling", lambda problem: small)
    alive = weakref.WeakSet[Columns]()
    made = Columns.__init__

    def counted(self: Columns, *arguments: Any) -> None:
        made(self, *arguments)
        alive.add(self)

    monkeypatch.setattr(Columns, "__init__", counted)
    table = torch.randperm(32, generator=torch.Generator().manual_seed(0))[None].to(torch.int32)
    settle(table)
    cache = torch.randn(32, 4, 1, 8)
    flash_attn_with_kvcache(
        torch.randn(1, 128, 1, 8), cache, cache, block_table=table, causal=True, impl="portable"
    )
    assert len(alive) == 1
