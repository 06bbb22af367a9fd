"""PagedKVCache against a dictionary of tensors: any history, after every step the same keys."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from torch import Tensor

from flashmetal import CacheFullError, CacheShape, PagedKVCache
from flashmetal.cache.page_pool import PagePool

SHAPE = CacheShape(layers=2, pages=18, page_size=3, heads=1, head_dim=2, head_dim_v=1)
STEPS = 50
PICK = st.integers(0, 1000)
taken = {"steps": 0, "full": 0}


class Kept(NamedTuple):
    """What a sequence should hold: keys (layers, S, 1, 2), values, how many are evicted, and the
    pages it was allocated with."""

    k: Tensor
    v: Tensor
    evicted: int = 0
    allocated: int = 0

    def pages(self) -> int:
        """Those that it keeps when it is truncated."""
        keys = -(-self.k.shape[1] // SHAPE.page_size)
        return max(keys, self.allocated) - self.evicted // SHAPE.page_size


class CacheMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = PagedKVCache(SHAPE)
        self.model: dict[int, Kept] = {}
        self.written = 0

    def any_sequence(self, pick: int) -> int:
        return sorted(self.model)[pick % len(self.model)]

    def new_rows(self, count: int) -> tuple[Tensor, Tensor]:
        """Rows that are like no others."""
        self.written += count
        rows = torch.arange(self.written - count, self.written, dtype=torch.float32)
        rows = rows[None, :, None, None] + torch.tensor([0.0, 0.5]).view(2, 1, 1, 1)
        return rows.repeat(1, 1, 1, 2), -rows

    @initialize()
    def start(self) -> None:
        self.allocate(0)

    @precondition(lambda self: len(self.model) < 5)
    @rule(tokens=st.sampled_from((0, 0, 1, 7, 60)))
    def allocate(self, tokens: int) -> None:
        free = SHAPE.pages - self.cache.memory().pages_used
        pages = -(-tokens // SHAPE.page_size)
        if pages > free:
            self.expect_full(lambda: self.cache.allocate(tokens))
            return
        sequence = self.cache.allocate(tokens)
        assert sequence not in self.model
        self.model[sequence] = Kept(*self.new_rows(0), allocated=pages)

    @precondition(lambda self: self.model)
    @rule(pick=PICK, count=st.sampled_from((0, 1, 1, 2, 3, 5, 9)))
    def append(self, pick: int, count: int) -> None:
        sequence = self.any_sequence(pick)
        rows, kept = self.new_rows(count), self.model[sequence]
        try:
            self.cache.append(sequence, *rows)
        except CacheFullError:
            taken["full"] += 1
            most = -(-count // SHAPE.page_size) + 1
            assert SHAPE.pages - self.cache.memory().pages_used < most
            return
        k, v = (torch.cat([a, b], 1) for a, b in zip((kept.k, kept.v), rows, strict=True))
        self.model[sequence] = kept._replace(k=k, v=v)

    @precondition(lambda self: self.model)
    @rule(pick=PICK, other=PICK, count=st.integers(0, 4), commit=st.booleans())
    def step(self, pick: int, other: int, count: int, commit: bool) -> None:
        """Two sequences at once, written as an attention call writes: all layers, then commit."""
        counts = {self.any_sequence(pick): count, self.any_sequence(other): 1}
        try:
            step = self.cache.step(counts)
        except CacheFullError:
            taken["full"] += 1
            return
        rows = {sequence: self.new_rows(n) for sequence, n in counts.items()}
        for layer in range(SHAPE.layers):
            caches = self.cache.layer(layer)
            for table, length, (k, v) in zip(
                step.block_table.tolist(), step.lengths, rows.values(), strict=True
            ):
                for t in range(k.shape[1]):
                    page, row = divmod(length + t, SHAPE.page_size)
                    caches["k_cache"][table[page], row] = k[layer, t]
                    caches["v_cache"][table[page], row] = v[layer, t]
        if not commit:
            return
        self.cache.commit(step)
        for sequence, (k, v) in rows.items():
            kept = self.model[sequence]
            k, v = torch.cat([kept.k, k], 1), torch.cat([kept.v, v], 1)
            self.model[sequence] = kept._replace(k=k, v=v)
        with pytest.raises(ValueError, match="committed once"):
            self.cache.commit(step)

    @precondition(lambda self: 0 < len(self.model) < 6)
    @rule(pick=PICK)
    def fork(self, pick: int) -> None:
        sequence = self.any_sequence(pick)
        self.model[self.cache.fork(sequence)] = self.model[sequence]._replace(allocated=0)

    @precondition(lambda self: self.model)
    @rule(pick=PICK, length=st.integers(0, 30))
    def truncate(self, pick: int, length: int) -> None:
        sequence = self.any_sequence(pick)
        kept = self.model[sequence]
        if not kept.evicted <= length <= kept.k.shape[1]:
            with pytest.raises(ValueError, match="PagedKVCache.truncate: length must lie between"):
                self.cache.truncate(sequence, length)
            return
        self.cache.truncate(sequence, length)
        kept = kept._replace(k=kept.k[:, :length], v=kept.v[:, :length])
        self.model[sequence] = kept
        table = self.cache.step({sequence: 0}).block_table
        assert int((table >= 0).sum()) == kept.pages()

    @precondition(lambda self: self.model)
    @rule(pick=PICK, keys=st.integers(0, 20))
    def evict(self, pick: int, keys: int) -> None:
        sequence = self.any_sequence(pick)
        kept = self.model[sequence]
        if keys > kept.k.shape[1]:
            with pytest.raises(ValueError, match="PagedKVCache.evict: keys must lie between"):
                self.cache.evict(sequence, keys)
            return
        self.cache.evict(sequence, keys)
        gone = max(kept.evicted, keys - keys % SHAPE.page_size)
        self.model[sequence] = kept._replace(evicted=gone)

    @precondition(lambda self: self.model)
    @rule(pick=PICK)
    def release(self, pick: int) -> None:
        sequence = self.any_sequence(pick)
        self.cache.release(sequence)
        del self.model[sequence]
        with pytest.raises(ValueError, match="there is no sequence"):
            self.cache.release(sequence)

    @rule()
    def defragment(self) -> None:
        used = self.cache.memory().pages_used
        self.cache.defragment()
        assert self.cache.memory().pages_used == used
        if self.model:
            table = self.cache.step(dict.fromkeys(self.model, 0)).block_table
            assert int(table.max()) < max(1, used)

    @rule()
    def save_and_load(self) -> None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "cache.safetensors"
            self.cache.save(path)
            self.cache = PagedKVCache.load(path)

    def expect_full(self, call: object) -> None:
        taken["full"] += 1
        assert callable(call)
        with pytest.raises(CacheFullError, match="pages are needed and"):
            call()

    @invariant()
    def it_holds_what_the_dictionary_holds(self) -> None:
        taken["steps"] += 1
        assert set(self.cache.sequences) == set(self.model)
        memory = self.cache.memory()
        assert memory.tokens == sum(x.k.shape[1] - x.evicted for x in self.model.values())
        layer = taken["steps"] % SHAPE.layers
        for sequence, kept in self.model.items():
            assert self.cache.length(sequence) == kept.k.shape[1]
            k, v = self.cache.gather(sequence, layer)
            assert torch.equal(k, kept.k[layer, kept.evicted :])
            assert torch.equal(v, kept.v[layer, kept.evicted :])

    @invariant()
    def no_page_is_lost(self) -> None:
        """Pages in use are those that sequences hold, and no others."""
        if self.model:
            table = self.cache.step(dict.fromkeys(self.model, 0)).block_table
            pages = {int(page) for page in table.flatten() if page >= 0}
            assert len(pages) == self.cache.memory().pages_used
        else:
            assert self.cache.memory().pages_used == 0


def run(examples: int, phases: Sequence[Phase] = tuple(Phase)) -> None:
    taken.update(steps=0, full=0)
    run_state_machine_as_test(
        CacheMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=STEPS,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
        ),
    )


def test_any_history_keeps_the_keys_of_every_sequence() -> None:
    run(examples=settings().max_examples * 12 // 5)
    assert taken["steps"] >= 10_000
    # 70 alone, over 100 in the whole suite: hypothesis draws the constants of imported modules too.
    assert taken["full"] >= 30


def no_copy(pool: PagePool, sequences: Mapping[int, int]) -> list[tuple[int, int]]:
    """Shared pages are written by all their sequences."""
    for number, count in sequences.items():
        found = pool.find("step", number)
        missing = max(0, pool._pages_of(found.length + count) - len(found.pages))
        pool._require("step", missing)
        pool._grow(found, missing)
    return []


def keep_pages(pool: PagePool, sequence: int, length: int) -> None:
    pool.find("truncate", sequence).length = length


def free_shared(pool: PagePool, pages: Iterable[int]) -> None:
    for page in pages:
        if page >= 0:
            pool._references[page] = 0


def evict_one_more(pool: PagePool, sequence: int, keys: int) -> None:
    found = pool.find("evict", sequence)
    gone = -(-keys // pool.page_size)
    pool._drop(found.pages[:gone])
    found.pages[:gone] = [-1] * gone


BUGS = {"reserve": no_copy, "truncate": keep_pages, "_drop": free_shared, "evict": evict_one_more}


@pytest.mark.parametrize("method", BUGS)
def test_a_broken_pool_is_found(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PagePool, method, BUGS[method])
    with pytest.raises((Exception, pytest.fail.Exception)) as found:
        run(examples=60, phases=(Phase.generate,))
    # Whatever the bug leads to first, but for a name that the bug itself has wrong.
    assert not isinstance(found.value, (AttributeError, NameError, TypeError))
