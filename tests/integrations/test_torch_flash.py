"""flashmetal as torch.nn.attention's implementation "METAL": varlen_attn on CPU tensors."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.nn import attention
from torch.nn.attention.varlen import AuxRequest, varlen_attn, varlen_attn_out

from flashmetal.gradients import Gradients
from flashmetal.integrations import sdpa, torch_flash
from flashmetal.testing import (
    assert_gradients_match_reference,
    assert_matches_reference,
    make_inputs,
    make_output_gradients,
)

LENGTHS = dict(lengths_q=[7, 0, 13], lengths_k=[9, 4, 13], heads_q=4, heads_k=2, head_dim=16)
WINDOWS: dict[str, tuple[int, int]] = {
    "full": (-1, -1),
    "causal": (-1, 0),
    "causal-window": (3, 0),
    "two-sided": (2, 1),
}


@pytest.fixture(autouse=True)
def active() -> Iterator[None]:
    torch_flash.register()
    attention.activate_flash_attention_impl("METAL")
    yield
    if attention.current_flash_attention_impl() is not None:
        attention.restore_flash_attention_impl()


def packed(window: tuple[int, int], dtype: torch.dtype = torch.float32) -> Any:
    return make_inputs(**LENGTHS, dtype=dtype, window_left=window[0], window_right=window[1])


def call(inputs: Any, window: tuple[int, int], **options: Any) -> Any:
    starts = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    options = dict(window_size=window, enable_gqa=True) | options
    return varlen_attn(*inputs[:3], *starts, 13, 13, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("window", WINDOWS)
def test_varlen_attn(window: str, dtype: torch.dtype) -> None:
    check(call, WINDOWS[window], dtype)


def test_varlen_attn_compiled() -> None:
    torch.compiler.reset()
    check(torch.compile(call, backend="aot_eager", fullgraph=True), (3, 0), torch.float32)


def check(function: Any, window: tuple[int, int], dtype: torch.dtype) -> None:
    """The output, the lse and the gradients of a packed call."""
    problem, inputs = packed(window, dtype)
    inputs = inputs._replace(**{name: getattr(inputs, name).requires_grad_() for name in "qkv"})
    o, lse = function(inputs, window, return_aux=AuxRequest(lse=True))
    assert_matches_reference(o.detach(), lse, problem, inputs)
    grad_o, _ = make_output_gradients(o, lse, through_lse=False)
    found = Gradients(*torch.autograd.grad(o, inputs[:3], grad_o))
    assert_gradients_match_reference(found, problem, inputs, grad_o, None)


def test_scale() -> None:
    problem, inputs = make_inputs(**LENGTHS, scale=0.7)
    o, lse = call(inputs, (-1, -1), scale=0.7, return_aux=AuxRequest(lse=True))
    assert_matches_reference(o, lse, problem, inputs)


def test_out_is_written() -> None:
    problem, inputs = packed((-1, 0))
    starts = inputs.cu_seqlens_q, inputs.cu_seqlens_k
    out = torch.empty_like(inputs.q)
    options = dict(window_size=(-1, 0), enable_gqa=True, return_aux=AuxRequest(lse=True))
    returned, lse = varlen_attn_out(out, *inputs[:3], *starts, 13, 13, **options)
    assert returned is out
    assert_matches_reference(out, lse, problem, inputs)


def test_pages() -> None:
    """Keys of a cache whose pages lie anywhere, and no offsets of keys."""
    problem, inputs = make_inputs(
        **LENGTHS, page_size=4, seqused_k=[9, 4, 13], window_left=-1, window_right=0
    )
    o, lse = varlen_attn(
        *inputs[:3],
        inputs.cu_seqlens_q,
        None,
        13,
        16,
        window_size=(-1, 0),
        enable_gqa=True,
        seqused_k=inputs.seqused_k,
        block_table=inputs.block_table,
        return_aux=AuxRequest(lse=True),
    )
    assert_matches_reference(o, lse, problem, inputs)


def test_one_split_is_the_same_in_any_batch() -> None:
    """num_splits=1 asks for that; on the CPU nothing is split."""
    _, inputs = packed((-1, 0))
    whole = call(inputs, (-1, 0), num_splits=1)
    last = inputs._replace(q=inputs.q[7:], k=inputs.k[13:], v=inputs.v[13:])
    starts = torch.tensor([0, 13], dtype=torch.int32)
    alone = call(last._replace(cu_seqlens_q=starts, cu_seqlens_k=starts), (-1, 0), num_splits=1)
    assert torch.equal(whole[7:], alone)


def test_dense_operator_and_its_gradients() -> None:
    problem, inputs = make_inputs(batch=2, seqlen_q=9, heads_q=4, heads_k=2, window_right=0)
    q, k, v = (x.requires_grad_() for x in inputs[:3])
    flash = torch.ops.aten._flash_attention_forward
    o, lse, *_ = flash(q, k, v, None, None, 9, 9, 0.0, True, False)
    assert_matches_reference(o.detach(), lse, problem, inputs)
    grad_o, _ = make_output_gradients(o, lse, through_lse=False)
    found = Gradients(*torch.autograd.grad(o, (q, k, v), grad_o))
    assert_gradients_match_reference(found, problem, inputs, grad_o, None)


@pytest.mark.parametrize("options", [(0.5, False, False), (0.0, False, True)], ids=["p", "mask"])
def test_what_varlen_attn_never_asks_for(options: tuple[float, bool, bool]) -> None:
    _, inputs = make_inputs(seqlen_q=9)
    with pytest.raises(NotImplementedError, match="no dropout and no debug mask"):
        torch.ops.aten._flash_attention_forward(*inputs[:3], None, None, 9, 9, *options)


def test_activation_is_undone() -> None:
    _, inputs = packed((-1, 0))
    assert attention.current_flash_attention_impl() == "METAL"
    assert sdpa.installation() == (("mps",), False)
    attention.restore_flash_attention_impl()
    assert sdpa.installation() is None
    with pytest.raises(NotImplementedError, match="_flash_attention_forward"):
        call(inputs, (-1, 0))
    with sdpa.installed(devices=("cpu",), always=True):
        attention.activate_flash_attention_impl("METAL")
        assert sdpa.installation() == (("mps", "cpu"), True)
        attention.restore_flash_attention_impl()
        assert sdpa.installation() == (("cpu",), True)
    with sdpa.installed():
        attention.activate_flash_attention_impl("METAL")
        attention.restore_flash_attention_impl()
        assert sdpa.installation() == (("mps",), False)


def test_an_old_torch_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(attention, "register_flash_attention_impl")
    with pytest.raises(NotImplementedError, match="update torch"):
        torch_flash.register()
