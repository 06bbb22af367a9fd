"""A tiny model trains with every attention layer on one engine, and follows eager attention.

The engines are a table: one that serves the model's attention and its gradients joins by a line.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import flashmetal
from flashmetal.engines.metal import metal_runtime
from flashmetal.testing import error_budget

from ..kernels.simulated import runtime

STEPS = 10
STARTS = torch.tensor([0, 13, 13, 40], dtype=torch.int32)
# What impl= a model is given, and what must surround its training.
ENGINES: dict[str, tuple[str, Callable[[], AbstractContextManager[Any]]]] = {
    "auto": ("auto", nullcontext),
    "portable": ("portable", nullcontext),
    "stock": ("stock", nullcontext),
    "metal, simulated": ("metal", lambda: metal_runtime(runtime())),
}


class Layer(nn.Module):
    """Causal attention of packed sequences, grouped heads, and an MLP."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(width, width), nn.Linear(width, width)
        self.out, self.up, self.down = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(2 * width, width),
        )
        self.sinks = nn.Parameter(torch.zeros(4))

    def forward(self, x: Tensor, impl: str) -> Tensor:
        normed = nn.functional.rms_norm(x, x.shape[-1:])
        o = flashmetal.flash_attn_varlen_kvpacked_func(
            self.q(normed).unflatten(-1, (4, 8)),
            self.kv(normed).unflatten(-1, (2, 2, 8)),
            *(STARTS, STARTS, 27, 27),
            causal=True,
            s_aux=self.sinks,
            impl=impl,
        )
        x = x + self.out(o.flatten(-2))
        return x + self.down(torch.relu(self.up(nn.functional.rms_norm(x, x.shape[-1:]))))


class Model(nn.Module):
    """Two layers that predict the next of 17 tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(17, 32)
        nn.init.normal_(self.embed.weight, std=0.2)
        self.layers = nn.ModuleList([Layer(), Layer()])

    def forward(self, tokens: Tensor, impl: str) -> Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x, impl)
        return x @ self.embed.weight.T


def trained(impl: str, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], list[Tensor]]:
    """(weights, losses) after STEPS steps of plain SGD from the same start."""
    torch.manual_seed(0)
    model, tokens = Model().to(dtype), torch.randint(17, (40,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses: list[Tensor] = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens, impl)[:-1], tokens[1:])
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return [p.detach() for p in model.parameters()], losses


@pytest.mark.parametrize("engine", ENGINES)
def test_weights_and_losses_are_eagers(engine: str) -> None:
    impl, surroundings = ENGINES[engine]
    exact, eager = trained("reference", torch.float64), trained("reference")
    with surroundings():
        ours = trained(impl)
    assert ours[1][-1] < 0.8 * ours[1][0], "the model does not learn"
    # Rounding feeds on itself over the steps, in weights of all sizes alike: one budget for all.
    flat = [torch.cat([x.flatten() for x in weights]) for weights, _ in (exact, eager, ours)]
    assert float((flat[2] - flat[0]).abs().max()) <= error_budget(flat[1], flat[0])
    losses = [torch.stack(x) for _, x in (exact, eager, ours)]
    assert float((losses[2] - losses[0]).abs().max()) <= error_budget(losses[1], losses[0])
