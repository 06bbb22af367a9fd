"""torch.compile with flashmetal installed for scaled_dot_product_attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dispatch.python import enable_python_dispatcher
from torch._dynamo.backends.common import aot_autograd
from torch.nn.functional import scaled_dot_product_attention

from flashmetal.integrations import sdpa

MODES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "grad": torch.enable_grad,
    "no-grad": torch.no_grad,
    "inference": torch.inference_mode,
}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(targets: list[str], **options: Any) -> Callable[..., Tensor]:
    """A compiled call; ``targets`` collects the operators of its forward graphs."""

    def keep(graph: torch.fx.GraphModule, inputs: Any) -> torch.fx.GraphModule:
        targets.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    def call(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return scaled_dot_product_attention(query, key, value, is_causal=True)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=lambda graph, inputs: graph)
    return torch.compile(call, backend=backend, fullgraph=True, **options)


@pytest.mark.parametrize("mode", MODES)
def test_graph_holds_our_operator(mode: str) -> None:
    targets: list[str] = []
    with sdpa.installed(devices=("cpu",), always=True), MODES[mode]():
        tensors = [torch.randn(2, 4, 7, 16, requires_grad=mode == "grad") for _ in "qkv"]
        call = compiled(targets)
        torch.testing.assert_close(
            call(*tensors), scaled_dot_product_attention(*tensors, is_causal=True)
        )
    assert "flashmetal.attention.default" in targets


def test_gradients_in_a_graph() -> None:
    tensors = [torch.randn(2, 4, 7, 16, requires_grad=True) for _ in "qkv"]
    with sdpa.installed(devices=("cpu",), always=True):
        out = compiled([])(*tensors)
        found = torch.autograd.grad(out.square().sum(), tensors)
    out = scaled_dot_product_attention(*tensors, is_causal=True)
    for ours, right in zip(found, torch.autograd.grad(out.square().sum(), tensors), strict=True):
        torch.testing.assert_close(ours, right)


def test_any_length_in_one_graph() -> None:
    """A graph with symbolic sizes, made in a process that traced before the installation."""
    targets: list[str] = []
    with torch.no_grad():
        compiled(targets, dynamic=True)(*[torch.randn(2, 4, 11, 16) for _ in "qkv"])
        assert "flashmetal.attention.default" not in targets
        torch.compiler.reset()
        with sdpa.installed(devices=("cpu",), always=True):
            call = compiled(targets, dynamic=True)
            for length in (7, 12, 33):
                tensors = [torch.randn(2, 4, length, 16) for _ in "qkv"]
                right = scaled_dot_product_attention(*tensors, is_causal=True)
                torch.testing.assert_close(call(*tensors), right)
        assert targets.count("flashmetal.attention.default") == 1
        torch.compiler.reset()
        targets.clear()
        compiled(targets, dynamic=True)(*[torch.randn(2, 4, 11, 16) for _ in "qkv"])
        assert "flashmetal.attention.default" not in targets


def test_rules_of_symbolic_sizes() -> None:
    """Short calls stay PyTorch's and long ones come to us, each in a graph for all such lengths."""
    targets: list[str] = []
    with sdpa.installed(devices=("cpu",)), torch.no_grad():
        call = compiled(targets, dynamic=True)
        for length, graphs in ((40, 0), (70, 0), (500, 1), (600, 1)):
            query, value = torch.randn(1, 4, length, 32), torch.randn(1, 4, length, 48)
            right = scaled_dot_product_attention(query, query, value, is_causal=True)
            torch.testing.assert_close(call(query, query, value), right)
            assert targets.count("flashmetal.attention.default") == graphs


def test_what_a_trace_remembered_is_forgotten() -> None:
    """Traces with symbolic sizes look the kernel up in a cache of Python's."""
    query = torch.randn(1, 2, 3, 8, requires_grad=True)

    def name() -> str:
        with enable_python_dispatcher():
            return scaled_dot_product_attention(query, query, query).grad_fn.name()

    stock = name()
    with sdpa.installed(devices=("cpu",), always=True):
        assert name() != stock
    assert name() == stock


def test_graphs_on_disk_are_kept_apart() -> None:
    """A stored graph of ours must not serve a process without us, nor the other way round."""
    config: Any = torch.compiler.config
    with config.patch(cache_key_tag="mine"):
        with sdpa.installed(devices=("cpu",)):
            gated = config.cache_key_tag
        with sdpa.installed(devices=("cpu",), always=True):
            always = config.cache_key_tag
        assert len({"mine", gated, always}) == 3
        assert all(tag.startswith("mine ") for tag in (gated, always))
        assert config.cache_key_tag == "mine"
