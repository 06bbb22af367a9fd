"""The boundary of torch.compile: opcheck, one graph, dynamic shapes, fake tensors, export."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import flashmetal
from flashmetal.request import AttentionInputs, Request
from flashmetal.testing import make_inputs

STARTS = torch.tensor([0, 3, 3, 10], dtype=torch.int32)
FEATURES: dict[str, dict[str, Any]] = {
    "dense": dict(batch=2, seqlen_q=5, seqlen_k=7, heads_q=4, heads_k=2, head_dim_v=16),
    "features": dict(
        seqlen_q=7, window_left=3, window_right=0, softcap=2.0, bias=True, alibi=True, sinks=True
    ),
    "varlen": dict(lengths_q=(3, 0, 7), lengths_k=(5, 2, 9), window_right=0),
    "seqused_k": dict(lengths_q=(3, 4), lengths_k=(5, 9), seqused_k=(2, 9), sinks=True),
    "strided": dict(batch=2, seqlen_q=5, strided=True),
    "empty": dict(batch=0, seqlen_q=5),
}


@pytest.fixture(autouse=True)
def fresh_graphs() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def request_for(case: str, function: str = "test") -> tuple[AttentionInputs, Request]:
    problem, inputs = make_inputs(**FEATURES[case])
    lengths = (problem.seqlen_q, problem.seqlen_k) if problem.layout == "varlen" else (None, None)
    window = problem.window_left, problem.window_right
    request = Request(function, *lengths, problem.scale, False, *window, problem.softcap)
    return inputs, request


@pytest.mark.parametrize("case", FEATURES)
def test_opcheck(case: str) -> None:
    inputs, request = request_for(case)
    torch.library.opcheck(torch.ops.flashmetal.attention, (*inputs, *request))


def test_opcheck_in_place() -> None:
    inputs, request = request_for("varlen")
    out = torch.empty_like(inputs.q)
    torch.library.opcheck(torch.ops.flashmetal.attention_out, (out, *inputs, *request))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return flashmetal.flash_attn_func(
        q * 2, k, v, causal=True, window_size=(4, 0), softcap=2.0, return_lse=True
    )


def packed(q: Tensor, k: Tensor, v: Tensor) -> Any:
    out = flashmetal.flash_attn_varlen_func(
        q, k, v, STARTS, STARTS, 7, 7, causal=True, return_attn_probs=True
    )
    return out[0] * 2, out[1]


def qkvpacked(q: Tensor, k: Tensor, v: Tensor) -> Any:
    return flashmetal.flash_attn_qkvpacked_func(torch.stack([q, k, v], 2), s_aux=q[0, 0, :, 0])


def in_place(q: Tensor, k: Tensor, v: Tensor) -> Any:
    out = torch.zeros_like(q)
    flashmetal.flash_attention_varlen(out, q, k, v, STARTS, STARTS, 7, 7, False, 0.3, 1.0)
    return out + 1


SHAPES = {dense: (2, 10, 4, 8), packed: (10, 4, 8), qkvpacked: (2, 10, 4, 8), in_place: (10, 4, 8)}


def name(call: Callable[..., Any]) -> str:
    return call.__name__


@pytest.mark.parametrize("needs_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("call", SHAPES, ids=name)
def test_one_graph(call: Callable[..., Any], needs_grad: bool) -> None:
    q, k, v = (torch.randn(SHAPES[call], requires_grad=needs_grad) for _ in range(3))
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    expected, actual = call(q, k, v), compiled(q, k, v)
    torch.testing.assert_close(actual, expected)
    if needs_grad:
        first = [x[0] if isinstance(x, tuple) else x for x in (expected, actual)]
        wanted, got = (torch.autograd.grad(x.sin().sum(), (q, k, v)) for x in first)
        torch.testing.assert_close(got, wanted)


def test_one_graph_through_inductor() -> None:
    q, k, v = torch.randn(3, 2, 10, 4, 8)
    compiled = torch.compile(dense, fullgraph=True, backend="inductor")
    torch.testing.assert_close(compiled(q, k, v), dense(q, k, v))


def test_dynamic_shapes_compile_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(dense, fullgraph=True, dynamic=True, backend=counter)
    frames: list[int] = []
    for batch, seqlen in ((2, 10), (3, 17), (5, 33)):
        q, k, v = torch.randn(3, batch, seqlen, 4, 8)
        torch.testing.assert_close(compiled(q, k, v), dense(q, k, v))
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1, f"compiled again: {frames}"


def test_dynamic_lengths_compile_once() -> None:
    counter = CompileCounterWithBackend("aot_eager")

    def call(q: Tensor, starts: Tensor, longest: int) -> Any:
        return flashmetal.flash_attn_varlen_func(q, q, q, starts, starts, longest, longest)

    compiled = torch.compile(call, fullgraph=True, dynamic=True, backend=counter)
    frames: list[int] = []
    for lengths in ((3, 7), (4, 9, 2), (5, 5, 5, 12)):
        starts = torch.tensor([sum(lengths[:b]) for b in range(len(lengths) + 1)]).int()
        q, longest = torch.randn(sum(lengths), 2, 8), max(lengths)
        torch.testing.assert_close(compiled(q, starts, longest), call(q, starts, longest))
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1, f"compiled again: {frames}"


def test_the_graph_holds_the_operator() -> None:
    graphs: list[torch.fx.GraphModule] = []

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(dense, fullgraph=True, backend=keep)(*torch.randn(3, 2, 10, 4, 8))
    targets = [node.target for graph in graphs for node in graph.graph.nodes]
    assert targets.count(torch.ops.flashmetal.attention.default) == 1


def test_a_compiled_call_checks_its_arguments() -> None:
    compiled = torch.compile(dense, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="dense|flash_attn_func"):
        compiled(torch.randn(2, 10, 3, 8), *torch.randn(2, 2, 10, 2, 8))

    def call(starts: Tensor) -> Any:
        return flashmetal.flash_attn_varlen_func(Q, Q, Q, starts, starts, 7, 7)

    Q = torch.randn(10, 2, 8)
    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert compiled(STARTS).shape == Q.shape
    with pytest.raises(ValueError, match="flash_attn_varlen_func: cu_seqlens_q must run from 0"):
        compiled(STARTS - 1)


@pytest.mark.parametrize("needs_grad", [False, True], ids=["inference", "training"])
@pytest.mark.parametrize("call", SHAPES, ids=name)
def test_fake_tensors(call: Callable[..., Any], needs_grad: bool) -> None:
    q, k, v = (torch.randn(SHAPES[call], requires_grad=needs_grad) for _ in range(3))
    expected = call(q, k, v)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        actual = call(*(mode.from_tensor(x) for x in (q, k, v)))
    for a, e in zip(_flat(actual), _flat(expected), strict=True):
        assert (a.shape, a.stride(), a.dtype, a.device) == (e.shape, e.stride(), e.dtype, e.device)
        assert a.requires_grad == e.requires_grad


def _flat(results: Any) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_memory_of_a_model_can_be_planned_without_data(device: str) -> None:
    with FakeTensorMode():
        q = torch.empty(4, 100_000, 32, 128, dtype=torch.bfloat16, device=device)
        out, lse = flashmetal.flash_attn_func(q, q[:, :, :8], q[:, :, :8], return_lse=True)
    assert out.shape == q.shape
    assert lse.shape == (4, 32, 100_000)


def test_export() -> None:
    class Model(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flashmetal.flash_attn_func(q, k, v, causal=True)

    q, k, v = torch.randn(3, 2, 10, 4, 8)
    seqlen = torch.export.Dim("seqlen", min=2)
    dynamic = ({1: seqlen}, {1: seqlen}, {1: seqlen})
    program = torch.export.export(Model(), (q, k, v), dynamic_shapes=dynamic)
    q, k, v = torch.randn(3, 2, 23, 4, 8)
    torch.testing.assert_close(program.module()(q, k, v), Model()(q, k, v))


def test_whoever_watches_sees_the_operator() -> None:
    """Eager calls skip the dispatcher; modes, transforms and subclasses must not miss it."""
    q = torch.randn(3, 1, 10, 2, 8)
    with torch.profiler.profile() as profile:
        expected = flashmetal.flash_attn_func(q[0], q[0], q[0])
    assert "flashmetal::attention" in {event.key for event in profile.key_averages()}

    class Named(Tensor):
        pass

    named = q[0].as_subclass(Named)
    assert type(flashmetal.flash_attn_func(named, named, named)) is Named
    mapped = torch.vmap(lambda x: flashmetal.flash_attn_func(x, x, x))(q)
    assert torch.equal(mapped[0], expected)
    traced = make_fx(lambda x: flashmetal.flash_attn_func(x, x, x), tracing_mode="symbolic")(q[0])
    targets = [node.target for node in traced.graph.nodes]
    assert targets.count(torch.ops.flashmetal.attention.default) == 1


def test_meta_tensors_give_the_shapes_of_a_call() -> None:
    q, k, v = (torch.empty(2, n, h, 8, device="meta") for n, h in ((5, 4), (7, 2), (7, 2)))
    for grad in (False, True):
        out, lse = flashmetal.flash_attn_func(q.requires_grad_(grad), k, v, return_lse=True)
        assert (out.device.type, out.shape, lse.shape) == ("meta", q.shape, (2, 4, 5))
    lengths = torch.empty(2, dtype=torch.int32, device="meta")
    with torch.no_grad():
        out = flashmetal.flash_attn_with_kvcache(q, k, v, k[:, :1], v[:, :1], cache_seqlens=lengths)
    assert (out.device.type, out.shape) == ("meta", q.shape)
