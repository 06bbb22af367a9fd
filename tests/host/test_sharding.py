"""Which rows lie where, and that each visible pair of them meets once: counted without a group."""

from __future__ import annotations

from itertools import product
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flashmetal.distributed import sharding as module
from flashmetal.distributed.sharding import SHARDINGS, Meeting, Sharding, meetings, steps

CPU = torch.device("cpu")
windows = st.tuples(st.integers(-1, 12), st.integers(-1, 12))
lengths = st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=3)


def rows_of(sharding: Sharding, seqlens: tuple[int, ...], rank: int) -> list[int]:
    return [row for span in sharding.rows(seqlens, rank) for row in range(*span)]


def taken(rows: tuple[int, int] | torch.Tensor) -> list[int]:
    return rows.tolist() if isinstance(rows, torch.Tensor) else list(range(*rows))


def pairs(meeting: Meeting) -> list[tuple[int, int]]:
    """The rows of the two shards that see each other in one call, as an engine reads it."""
    q, k = taken(meeting.q), taken(meeting.k)
    starts_q, starts_k = [0, len(q)], [0, len(k)]
    if meeting.lengths is not None:
        starts_q, starts_k = (x.tolist() for x in meeting.lengths[:2])
    left, right = meeting.window
    found: list[tuple[int, int]] = []
    for b in range(len(starts_q) - 1):
        own_q, own_k = q[starts_q[b] : starts_q[b + 1]], k[starts_k[b] : starts_k[b + 1]]
        diagonal = len(own_k) - len(own_q)
        found += [
            (row, key)
            for (i, row), (j, key) in product(enumerate(own_q), enumerate(own_k))
            if (right < 0 or j <= i + diagonal + right) and (left < 0 or j >= i + diagonal - left)
        ]
    return found


def visible(sharding: Sharding, window: tuple[int, int]) -> list[tuple[int, int]]:
    left, right = window
    found: list[tuple[int, int]] = []
    start_q = start_k = 0
    for seqlen_q, seqlen_k in zip(sharding.seqlens_q, sharding.seqlens_k, strict=True):
        at = seqlen_k - seqlen_q
        found += [
            (start_q + i, start_k + j)
            for i, j in product(range(seqlen_q), range(seqlen_k))
            if (right < 0 or j <= i + at + right) and (left < 0 or j >= i + at - left)
        ]
        start_q, start_k = start_q + seqlen_q, start_k + seqlen_k
    return found


@given(
    sizes=lengths,
    window=windows,
    ranks=st.integers(1, 5),
    kind=st.sampled_from(SHARDINGS),
    most=st.sampled_from([1, 3, 8192]),
)
def test_each_visible_pair_meets_once(
    sizes: list[tuple[int, int]], window: tuple[int, int], ranks: int, kind: str, most: int
) -> None:
    seqlens_q, seqlens_k = zip(*sizes, strict=True)
    sharding = Sharding(seqlens_q, seqlens_k, ranks, kind)
    met: list[tuple[int, int]] = []
    for rank, step in product(range(ranks), range(steps(sharding, window))):
        source = (rank - step) % ranks
        own = rows_of(sharding, seqlens_q, rank), rows_of(sharding, seqlens_k, source)
        with mock.patch.object(module, "MOST_ROWS", most):
            found = meetings(sharding, window, (rank, source), len(sizes) > 1, CPU)
        for meeting in found:
            met += [(own[0][i], own[1][j]) for i, j in pairs(meeting)]
            assert min(meeting.window) >= -1
            assert len(taken(meeting.q)) <= most
    assert sorted(met) == sorted(visible(sharding, window))


@given(seqlen=st.integers(0, 60), ranks=st.integers(1, 7), kind=st.sampled_from(SHARDINGS))
def test_each_row_lies_on_one_rank(seqlen: int, ranks: int, kind: str) -> None:
    sharding = Sharding((seqlen,), (seqlen,), ranks, kind)
    held = [row for rank in range(ranks) for row in rows_of(sharding, (seqlen,), rank)]
    assert sorted(held) == list(range(seqlen))


def work(sharding: Sharding, rank: int) -> list[int]:
    """The pairs a rank computes at each step of a causal call."""
    causal = -1, 0
    return [
        sum(
            len(pairs(meeting))
            for meeting in meetings(sharding, causal, (rank, (rank - step) % 4), False, CPU)
        )
        for step in range(4)
    ]


def test_zigzag_gives_every_rank_the_same_work_at_every_step() -> None:
    zigzag = Sharding((64,), (64,), 4, "zigzag")
    assert {tuple(work(zigzag, rank)) for rank in range(4)} == {(136, 128, 128, 128)}
    contiguous = Sharding((64,), (64,), 4, "contiguous")
    assert [sum(work(contiguous, rank)) for rank in range(4)] == [136, 392, 648, 904]


@pytest.mark.parametrize("causal", [False, True])
def test_pieces_without_a_mask_share_a_call(causal: bool) -> None:
    sharding = Sharding((64,), (64,), 4, "zigzag")
    window = -1, 0 if causal else -1
    for rank, source in product(range(4), range(4)):
        calls = meetings(sharding, window, (rank, source), False, CPU)
        assert len(calls) == 1 or (causal and rank == source)


def test_windows_of_contiguous_shards_need_the_neighbours_only() -> None:
    sharding = Sharding((64,), (64,), 8, "contiguous")
    assert steps(sharding, (7, 0)) == 2
    assert steps(sharding, (9, 0)) == 3
    assert steps(sharding, (-1, 0)) == 8
    assert steps(sharding._replace(kind="zigzag"), (7, 0)) == 8
