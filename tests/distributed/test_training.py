"""The tiny model of the engines' tests follows eager attention over four ranks."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

import flashmetal
from flashmetal import distributed
from flashmetal.testing import error_budget

from ..engines.test_training import STARTS, STEPS, Model, trained
from .processes import Processes


def trained_on_shares(rank: int, attention: str) -> tuple[list[Tensor], list[Tensor]]:
    """(weights, losses) of one rank: its own rows, and the gradients of all."""
    del rank
    rows = distributed.local_rows(STARTS)

    def attend(q: Tensor, kv: Tensor, *lengths: Any, **options: Any) -> Tensor:
        return distributed.flash_attn_varlen_func(
            q, *kv.unbind(1), *lengths[:2], method=attention, **options
        )

    torch.manual_seed(0)
    model, tokens = Model(), torch.randint(17, (40,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    targets = torch.cat([tokens[1:], torch.tensor([-100])])[rows]  # the last predicts nothing
    losses: list[Tensor] = []
    with mock.patch.object(flashmetal, "flash_attn_varlen_kvpacked_func", attend):
        for _ in range(STEPS):
            optimizer.zero_grad()
            logits = model(tokens[rows], "auto")
            loss = nn.functional.cross_entropy(logits, targets, reduction="sum") / 39
            loss.backward()
            for x in (loss.detach(), *(p.grad for p in model.parameters())):
                dist.all_reduce(x)
            optimizer.step()
            losses.append(loss.detach())
    return [p.detach() for p in model.parameters()], losses


@pytest.mark.parametrize("attention", ["ring", "ulysses"])
def test_weights_and_losses_are_eagers(processes: Processes, attention: str) -> None:
    exact, eager = trained("reference", torch.float64), trained("reference")
    for ours in processes.run(trained_on_shares, attention):
        for part in range(2):
            runs = [torch.cat([x.flatten() for x in run[part]]) for run in (exact, eager, ours)]
            assert float((runs[2] - runs[0]).abs().max()) <= error_budget(runs[1], runs[0])


def twice_differentiated(rank: int, method: str) -> tuple[bool, str]:
    """Whether a gradient says that it depends on q, and what its own gradient raises."""
    del rank
    q = torch.randn(1, 8, 4, 16).requires_grad_()
    o = distributed.flash_attn_func(q, q, q, seqlen_q=32, seqlen_k=32, method=method)
    (grad,) = torch.autograd.grad(o.sum(), q, create_graph=True)
    try:
        grad.square().sum().backward()
    except NotImplementedError as error:
        return grad.requires_grad, str(error)
    return grad.requires_grad, ""


@pytest.mark.parametrize("method", ["ring", "ulysses"])
def test_second_derivatives_raise(processes: Processes, method: str) -> None:
    for depends, message in processes.run(twice_differentiated, method):
        assert depends
        assert "no gradients of their own" in message
