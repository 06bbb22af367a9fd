"""Lengths of a step are read once for all layers, and never taken for those of another."""

from __future__ import annotations

import gc
import weakref
from typing import Any

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
)
from flashmetal.engines import append, sequences
from flashmetal.settled import once, settle

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
        assert doubled(doubled(lengths)).tolist() == [6, 8]  # settled too, and its name is taken
    assert doubled.calls == 3


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
    """Tensors of inference mode cannot be saved for a backward, fake ones have no values."""
    doubled, lengths = Doubled(), torch.tensor([3, 4])
    settle(lengths)
    with torch.inference_mode():
        assert doubled(lengths).is_inference()
    assert not doubled(lengths).is_inference()
    with FakeTensorMode(allow_non_fake_inputs=True):
        doubled(lengths)
    assert doubled(lengths).tolist() == [6, 8]
    assert doubled.calls == 3


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


def test_what_is_right_for_one_cache_is_checked_for_another() -> None:
    cache = PagedKVCache(SHAPE)
    cache.allocate(20)
    number = cache.allocate(6)
    step = cache.step({number: 2})
    attend(cache, step, 0)
    few = {name: x[:5] for name, x in cache.layer(1).items()}
    before = few["k_cache"].clone()
    with pytest.raises(ValueError, match="must hold pages from 0 to 4"):
        attend(cache, step, 1, **few)
    assert torch.equal(before, few["k_cache"])
