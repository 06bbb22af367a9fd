"""Training through the operators: opcheck, one graph, checkpointing, autocast, what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

import flashmetal
from flashmetal.engines import portable
from flashmetal.request import AttentionInputs, Request
from flashmetal.testing import differentiable, make_inputs

from ..features import SHAPE, TRAINING

OPCHECKED = ("plain", "causal", "varlen", "everything", "dropout, packed", "no keys but sinks")


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def request_for(feature: str) -> tuple[AttentionInputs, Request]:
    problem, inputs = make_inputs(**{**SHAPE, **TRAINING[feature]})
    lengths = (problem.seqlen_q, problem.seqlen_k) if problem.layout == "varlen" else (None, None)
    window = problem.window_left, problem.window_right
    options = problem.scale, False, *window, problem.softcap
    return inputs, Request("test", *lengths, *options, dropout_p=problem.dropout_p)


@pytest.mark.parametrize("feature", OPCHECKED)
def test_opcheck_with_gradients(feature: str) -> None:
    inputs, request = request_for(feature)
    leaves = {n: getattr(inputs, n).detach().requires_grad_() for n in differentiable(inputs)}
    arguments = (*inputs._replace(**leaves), *request)
    torch.library.opcheck(torch.ops.flashmetal.attention, arguments)


@pytest.mark.parametrize("feature", OPCHECKED)
def test_opcheck_of_the_backward(feature: str) -> None:
    inputs, request = request_for(feature)
    o, lse = torch.ops.flashmetal.attention(*inputs, *request)
    wanted = [x is not None for x in inputs[:6]]
    arguments = (*inputs, *request, o, lse, torch.ones_like(o), None, wanted)
    torch.library.opcheck(torch.ops.flashmetal.attention_backward, arguments)


class Block(nn.Module):
    """A transformer block as models write it: norm, attention with rotated heads, gated MLP."""

    def __init__(self, width: int = 32, heads: int = 4, dropout_p: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout_p = heads, dropout_p
        self.norms = nn.ModuleList([nn.RMSNorm(width), nn.RMSNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norms[0](x)).unflatten(-1, (3, self.heads, -1))
        dropout_p = self.dropout_p if self.training else 0.0
        o = flashmetal.flash_attn_qkvpacked_func(qkv, dropout_p, causal=True, window_size=(9, 0))
        x = x + self.out(o.flatten(-2))
        gate, up = self.up(self.norms[1](x)).chunk(2, -1)
        return x + self.down(nn.functional.silu(gate) * up)


def gradients(module: nn.Module, call: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    loss = call(x).square().mean()
    return list(torch.autograd.grad(loss, list(module.parameters())))


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_block_trains_in_one_graph(backend: str) -> None:
    block, x = Block(), torch.randn(2, 24, 32)
    compiled = torch.compile(block, fullgraph=True, backend=backend)
    expected, actual = (gradients(block, call, x) for call in (block, compiled))
    torch.testing.assert_close(actual, expected)
    assert torch._dynamo.explain(block)(x).graph_break_count == 0


def test_dynamic_shapes_train_with_one_graph() -> None:
    block, counter = Block(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(block, fullgraph=True, dynamic=True, backend=counter)
    frames: list[int] = []
    for batch, seqlen in ((2, 12), (3, 17), (5, 33)):
        x = torch.randn(batch, seqlen, 32)
        torch.testing.assert_close(gradients(block, compiled, x), gradients(block, block, x))
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1, f"compiled again: {frames}"


def test_export_of_a_training_block() -> None:
    block, x = Block(), torch.randn(2, 12, 32)
    program = torch.export.export(block, (x,))
    module = program.module()
    torch.testing.assert_close(module(x), block(x))


def test_fake_tensors_train() -> None:
    with FakeTensorMode():
        block, x = Block(), torch.randn(2, 12, 32)
        assert [g.shape for g in gradients(block, block, x)] == [
            p.shape for p in block.parameters()
        ]


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_checkpointing_draws_the_same_dropout(compiled: bool) -> None:
    block, x = Block(dropout_p=0.4), torch.randn(2, 24, 32)

    def call(x: Tensor) -> Tensor:
        result = checkpoint(block, x, use_reentrant=False, preserve_rng_state=True)
        assert isinstance(result, Tensor)
        return result

    run = torch.compile(call, fullgraph=True, backend="aot_eager") if compiled else call
    plain = torch.compile(block, fullgraph=True, backend="aot_eager") if compiled else block
    results: list[list[Tensor]] = []
    for function in (plain, run):
        torch.manual_seed(3)
        results.append(gradients(block, function, x))
    torch.testing.assert_close(results[1], results[0])


def test_manual_seed_reproduces_compiled_dropout() -> None:
    block, x = Block(dropout_p=0.4), torch.randn(2, 24, 32)
    compiled = torch.compile(block, fullgraph=True, backend="inductor")
    outputs: list[Tensor] = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        outputs.append(compiled(x))
    assert torch.equal(outputs[0], outputs[1])
    assert not torch.equal(outputs[0], outputs[2])


def test_autocast_keeps_the_dtype_that_came() -> None:
    """As flash_attn: a half q stays half, and the backward, under autocast too, sums in float32."""
    q = torch.randn(1, 9, 2, 8, requires_grad=True)
    results: list[Tensor] = []
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = flashmetal.flash_attn_func(q, q, q, softcap=2.0)
            assert out.dtype == torch.float32
            results += torch.autograd.grad(out.square().sum(), q)
            half = flashmetal.flash_attn_func(q.bfloat16(), q.bfloat16(), q.bfloat16())
            assert half.dtype == torch.bfloat16
    assert torch.equal(*results)


def test_gradients_accumulate() -> None:
    q = torch.randn(1, 9, 2, 8, requires_grad=True)
    alone = torch.autograd.grad(flashmetal.flash_attn_func(q, q, q).square().sum(), q)[0]
    for _ in range(3):
        flashmetal.flash_attn_func(q, q, q).square().sum().backward()
    torch.testing.assert_close(q.grad, 3 * alone)


def test_second_derivatives_are_refused_and_those_of_the_reference_are_there() -> None:
    q = torch.randn(1, 5, 1, 4, dtype=torch.float64, requires_grad=True)

    def penalty(**options: Any) -> Tensor:
        out = flashmetal.flash_attn_func(q, q, q, **options)
        return torch.autograd.grad(out.square().sum(), q, create_graph=True)[0].square().sum()

    with pytest.raises(NotImplementedError, match='pass impl="reference"'):
        penalty().backward()
    penalty(impl="reference").backward()
    assert torch.isfinite(q.grad).all()


def test_only_what_is_wanted_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, ...]] = []
    gradients_of = portable.gradients

    def watched(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        return gradients_of(*arguments)

    monkeypatch.setattr(portable, "gradients", watched)
    q, k, v = torch.randn(3, 1, 9, 2, 8)
    v.requires_grad_()
    flashmetal.flash_attn_func(q, k, v, softcap=1.0).sum().backward()
    assert asked == [("v",)]
