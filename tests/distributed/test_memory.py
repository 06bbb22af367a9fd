"""What a rank holds falls as one over the ranks: counted, not timed."""

from __future__ import annotations

import pytest
import torch

from flashmetal import distributed

from ..operations import Operations
from .processes import Processes
from .spread import mesh

SEQLEN, HEADS, DIM = 1024, 4, 16


def held(rank: int, attention: str, size: int) -> tuple[int, int]:
    """The elements of the largest tensor of a call, and of all that its backward is left."""
    del rank
    saved: list[int] = []

    def keep(x: torch.Tensor) -> torch.Tensor:
        saved.append(x.numel())
        return x

    function = getattr(distributed, f"{attention}_attn_func")
    shards = [torch.ones(1, SEQLEN // size, HEADS, DIM, requires_grad=True) for _ in range(3)]
    with Operations() as mode, torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        function(*shards, causal=True, group=mesh(size)).sum().backward()
    return mode.largest, sum(saved)


@pytest.mark.parametrize("attention", ["ring", "ulysses"])
def test_a_rank_holds_its_share(processes: Processes, attention: str) -> None:
    for size in (2, 4):
        share = SEQLEN * HEADS * DIM // size
        for largest, saved in processes.run(held, attention, size):
            assert share <= largest <= share * (DIM + 1) // DIM  # a column for the gradient at lse
            assert 4 * share < saved <= 5 * share  # q, k, v, o and lse
