"""PyTorch's scaled_dot_product_attention with flashmetal installed, on CPU tensors."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from flashmetal.engines.metal import metal_runtime
from flashmetal.integrations import sdpa
from flashmetal.testing import error_budget

from ..kernels.simulated import runtime

BATCH, HEADS, ROWS, KEYS, HEAD_DIM = 2, 4, 9, 13, 16
# With one visible key the gradients of query and key are 0, but for the rounding of what cancels.
ONE_KEY = ("causal-one-row", "causal-one-key")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def visible(*shape: int) -> Tensor:
    """A boolean mask that hides about half of the keys, and in each matrix the whole third row."""
    mask = torch.rand(shape) > 0.5
    mask[..., 2, :] = False
    return mask


# Shapes that differ from (BATCH, HEADS, ROWS and KEYS, HEAD_DIM), and the call's other arguments.
CASES: dict[str, tuple[dict[str, Any], Callable[[], dict[str, Any]]]] = {
    "plain": ({}, dict),
    "scale": ({}, lambda: dict(scale=0.7)),
    "negative-scale": ({}, lambda: dict(scale=-0.3)),
    "causal-square": (dict(keys=ROWS), lambda: dict(is_causal=True)),
    "causal-more-keys": ({}, lambda: dict(is_causal=True)),
    "causal-more-rows": (dict(keys=5), lambda: dict(is_causal=True)),
    "causal-one-row": (dict(rows=1), lambda: dict(is_causal=True)),
    "causal-one-key": (dict(keys=1), lambda: dict(is_causal=True)),
    "grouped": (dict(heads_k=2), lambda: dict(enable_gqa=True)),
    "grouped-causal": (dict(heads_k=1), lambda: dict(enable_gqa=True, is_causal=True)),
    "value-dim": (dict(head_dim_v=24), dict),
    "three-dimensions": (dict(flat=True), dict),
    "three-dimensions-mask": (dict(flat=True), lambda: dict(attn_mask=visible(BATCH, ROWS, KEYS))),
    "strides": (dict(strided=True), dict),
    "bool": ({}, lambda: dict(attn_mask=visible(ROWS, KEYS))),
    "bool-per-head": ({}, lambda: dict(attn_mask=visible(BATCH, HEADS, ROWS, KEYS))),
    "bool-keys-broadcast": ({}, lambda: dict(attn_mask=visible(BATCH, 1, ROWS, 1))),
    "bool-rows-broadcast": ({}, lambda: dict(attn_mask=torch.rand(BATCH, 1, 1, KEYS) > 0.5)),
    "bool-three-dimensions": ({}, lambda: dict(attn_mask=visible(HEADS, ROWS, KEYS))),
    "mask-of-ones": ({}, lambda: dict(attn_mask=torch.ones(ROWS, KEYS, dtype=torch.bool))),
    "additive": ({}, lambda: dict(attn_mask=torch.randn(1, HEADS, ROWS, KEYS))),
    "additive-hides": (
        {},
        lambda: dict(
            attn_mask=torch.randn(ROWS, KEYS).masked_fill(~visible(ROWS, KEYS), -torch.inf)
        ),
    ),
}


def make(
    dtype: torch.dtype,
    rows: int = ROWS,
    keys: int = KEYS,
    heads_k: int = HEADS,
    head_dim_v: int = HEAD_DIM,
    flat: bool = False,
    strided: bool = False,
) -> list[Tensor]:
    torch.manual_seed(3)
    sizes = (HEADS, rows, HEAD_DIM), (heads_k, keys, HEAD_DIM), (heads_k, keys, head_dim_v)
    shapes = [(BATCH, *((size[1:]) if flat else size)) for size in sizes]
    tensors = [torch.randn(shape) for shape in shapes]
    if strided:
        tensors = [torch.randn(*shape[:-1], 2 * shape[-1])[..., ::2] for shape in shapes]
    return [x.to(dtype).requires_grad_() for x in tensors]


def run(tensors: list[Tensor], arguments: dict[str, Any]) -> list[Tensor]:
    """The output and the gradients of query, key and value, detached."""
    tensors = [x.detach().requires_grad_() for x in tensors]
    out = scaled_dot_product_attention(*tensors, **arguments)
    generator = torch.Generator().manual_seed(5)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    return [out.detach(), *torch.autograd.grad(out, tensors, grad)]


def in_dtype(arguments: dict[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    mask = arguments.get("attn_mask")
    if mask is None or mask.dtype == torch.bool:
        return arguments
    return arguments | {"attn_mask": mask.to(dtype)}


@pytest.fixture
def installed() -> Iterator[None]:
    with sdpa.installed(devices=("cpu",), always=True):
        yield


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each call that reached flashmetal."""
    calls: list[str] = []
    attention = sdpa.flash_attn_func

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append("flash_attn_func")
        return attention(*args, **kwargs)

    monkeypatch.setattr(sdpa, "flash_attn_func", counted)
    return calls


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("installed")
def test_output_and_gradients(case: str, dtype: str, served: list[str]) -> None:
    """Within the error of PyTorch's own operations in the same dtype, against float64."""
    sizes, options = CASES[case]
    tensors = make(DTYPES[dtype], **sizes)
    arguments = in_dtype(options(), DTYPES[dtype])
    ours = run(tensors, arguments)
    assert len(served) == 1
    with sdpa_kernel(SDPBackend.MATH):
        eager = run(tensors, arguments)
        exact = run([x.double() for x in tensors], in_dtype(arguments, torch.float64))
    assert len(served) == 1
    for name, a, b, right in zip("oqkv", ours, eager, exact, strict=True):
        assert a.shape == right.shape
        assert a.dtype == DTYPES[dtype]
        if case not in ONE_KEY or name in "ov":
            assert (a.double() - right).abs().max() <= error_budget(b, right), name


def test_hidden_rows_are_zero(installed: None) -> None:
    query, key, value = make(torch.float32)
    mask = visible(ROWS, KEYS)
    out, *grads = run([query, key, value], dict(attn_mask=mask))
    assert not out[:, :, 2].any()
    assert not grads[0][:, :, 2].any()
    assert all(x.isfinite().all() for x in (out, *grads))


def test_gradient_of_the_mask(installed: None, served: list[str]) -> None:
    query, key, value = make(torch.float32)
    mask = torch.randn(1, HEADS, ROWS, KEYS, requires_grad=True)

    def gradient(dtype: torch.dtype) -> Tensor:
        tensors = [x.to(dtype) for x in (query, key, value, mask)]
        out = scaled_dot_product_attention(*tensors)
        return torch.autograd.grad(out.square().sum(), mask)[0].double()

    ours = gradient(torch.float32)
    assert served
    with sdpa_kernel(SDPBackend.MATH):
        eager, exact = gradient(torch.float32).float(), gradient(torch.float64)
    assert (ours - exact).abs().max() <= error_budget(eager, exact)


def test_dropout(installed: None, served: list[str]) -> None:
    """An entry of the probabilities is dropped, or scaled; the seed says which."""
    query, key, _ = make(torch.float32)
    value = torch.eye(KEYS).expand(BATCH, HEADS, KEYS, KEYS)
    whole = scaled_dot_product_attention(query, key, value)
    torch.manual_seed(1)
    first = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    torch.manual_seed(1)
    again = scaled_dot_product_attention(query, key, value, dropout_p=0.5)
    assert len(served) == 3
    assert torch.equal(first, again)
    kept = first != 0
    assert 0.3 < kept.double().mean() < 0.7
    torch.testing.assert_close(first[kept], 2 * whole[kept])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(attn_mask=torch.ones(ROWS, KEYS + 1)), "expand|match"),
        (dict(dropout_p=1.5), "dropout"),
    ],
    ids=["mask-shape", "dropout"],
)
def test_errors_are_pytorchs(
    arguments: dict[str, Any], message: str, installed: None, served: list[str]
) -> None:
    query, key, value = make(torch.float32)
    with pytest.raises(RuntimeError, match=message):
        scaled_dot_product_attention(query, key, value, **arguments)
    assert not served


def test_what_is_not_ours_is_pytorchs(installed: None, served: list[str]) -> None:
    """Broadcast batches, empty sequences, a mask beside is_causal, function transforms."""
    query, key, value = (x.detach() for x in make(torch.float32))
    with sdpa_kernel(SDPBackend.MATH):
        right = scaled_dot_product_attention(query[:1], key, value)
    assert torch.equal(scaled_dot_product_attention(query[:1], key, value), right)
    assert scaled_dot_product_attention(query, key[:, :, :0], value[:, :, :0]).shape == query.shape
    mask = visible(ROWS, KEYS)
    both = scaled_dot_product_attention(query, key, value, mask, is_causal=True)
    sdpa.uninstall()
    assert torch.equal(both, scaled_dot_product_attention(query, key, value, mask, is_causal=True))
    sdpa.install(devices=("cpu",), always=True)
    batched = torch.vmap(scaled_dot_product_attention)(query[None], key[None], value[None])
    torch.testing.assert_close(batched[0], scaled_dot_product_attention(query, key, value))
    assert len(served) == 1  # the last one


def test_every_way_to_the_operator(installed: None, served: list[str]) -> None:
    query, key, value = make(torch.float32)
    ways = itertools.count(1)
    scaled_dot_product_attention(query, key, value)
    assert len(served) == next(ways)
    with torch.inference_mode():
        torch.nn.functional.scaled_dot_product_attention(query.detach().clone(), key, value)
    assert len(served) == next(ways)
    with torch.autocast("cpu", torch.bfloat16):
        out = scaled_dot_product_attention(query, key, value)
    assert out.dtype == torch.bfloat16
    assert len(served) == next(ways)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    attention(*[torch.randn(2, 5, 32)] * 3, need_weights=False)
    assert len(served) == next(ways)


def test_second_derivatives_say_what_to_do(installed: None) -> None:
    query, key, value = make(torch.float32)
    out = scaled_dot_product_attention(query, key, value)
    grad = torch.autograd.grad(out.square().sum(), query, create_graph=True)[0]
    with pytest.raises(NotImplementedError, match="no gradients of their own"):
        grad.sum().backward()
    with sdpa_kernel(SDPBackend.MATH):
        out = scaled_dot_product_attention(query, key, value)
    grad = torch.autograd.grad(out.square().sum(), query, create_graph=True)[0]
    grad.sum().backward()


def test_install_and_uninstall(served: list[str]) -> None:
    tensors = make(torch.float32)
    scaled_dot_product_attention(*tensors)
    assert sdpa.installation() is None
    sdpa.install(devices=["cpu"], always=True)
    sdpa.install(devices=["cpu"], always=True)
    scaled_dot_product_attention(*tensors)
    assert len(served) == 1
    with sdpa.installed(devices=("mps",)):
        assert sdpa.installation() == (("mps",), False)
        scaled_dot_product_attention(*tensors)
        assert len(served) == 1
    assert sdpa.installation() == (("cpu",), True)
    scaled_dot_product_attention(*tensors)
    assert len(served) == 2
    sdpa.uninstall()
    sdpa.uninstall()
    scaled_dot_product_attention(*tensors)
    assert len(served) == 2


@pytest.mark.parametrize("devices", ["cpu", ("cuda",), ()])
def test_devices_are_checked(devices: Any) -> None:
    with pytest.raises(ValueError, match="sdpa.install: devices must be some of"):
        sdpa.install(devices=devices)
    assert sdpa.installation() is None


def test_default_leaves_small_calls_alone(served: list[str]) -> None:
    """And takes what PyTorch would form the scores for."""
    small, large = torch.randn(1, 2, 9, 16), torch.randn(1, 8, 600, 16)
    with sdpa.installed(devices=("cpu",)):
        scaled_dot_product_attention(small, small, small)
        scaled_dot_product_attention(large, large, large)
        assert not served
        scaled_dot_product_attention(large, large, torch.cat([large] * 2, -1))
        assert len(served) == 1


def test_mps_tensors_reach_us(served: list[str]) -> None:
    """Tensors of shapes only, whose way through the dispatcher is that of a Mac's."""
    with FakeTensorMode(), sdpa.installed():
        query = torch.empty(1, 8, 2048, 112, device="mps", dtype=torch.float16)
        out = scaled_dot_product_attention(query, query, query)
        assert (out.shape, out.device) == (query.shape, query.device)
        assert len(served) == 1


@pytest.mark.parametrize("case", ["causal-more-rows", "bool-three-dimensions"])
def test_on_the_metal_kernel(case: str, monkeypatch: pytest.MonkeyPatch, installed: None) -> None:
    """The same answers as the engines of CPUs give, to which the cases above hold them."""
    sizes, options = CASES[case]
    tensors, arguments = make(torch.float32, **sizes), options()
    with torch.no_grad():
        expected = scaled_dot_product_attention(*tensors, **arguments)
        monkeypatch.setattr(sdpa, "flash_attn_func", partial(sdpa.flash_attn_func, impl="metal"))
        with metal_runtime(runtime()):
            out = scaled_dot_product_attention(*tensors, **arguments)
    assert not torch.equal(out, torch.zeros_like(out))
    torch.testing.assert_close(out, expected)
