"""flashmetal as one of torch.nn.attention's flash attention implementations, on MPS and CPU.

>>> from flashmetal.integrations import torch_flash
>>> torch_flash.register()
>>> torch.nn.attention.activate_flash_attention_impl("METAL")

While it is active, ``aten::_flash_attention_forward``, its in-place form and its backward have
kernels for both devices, which torch has for CUDA alone. On them ``torch.nn.attention.varlen``
builds: ``varlen_attn`` and ``varlen_attn_out`` with windows, grouped heads, ``seqused_k``, pages,
gradients and ``torch.compile``. Scaled dot product attention on MPS is installed as well, see
:mod:`.sdpa`. ``torch.nn.attention.restore_flash_attention_impl()`` undoes all of it.

Alignment is flash_attn's, bottom-right. The log-sum-exp of a row that sees no key is -inf.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import api_operators
from ..api import flash_attn_func, flash_attn_varlen_func
from . import sdpa

NAME = "METAL"


def register() -> None:
    """Make the implementation "METAL" known to torch.nn.attention; nothing is activated."""
    attention: Any = torch.nn.attention
    if not hasattr(attention, "register_flash_attention_impl"):
        raise NotImplementedError(
            f"torch_flash.register: torch {torch.__version__} has no registry of flash attention "
            "implementations; update torch, or use flashmetal.integrations.sdpa.install()"
        )
    attention.register_flash_attention_impl(NAME, register_fn=_Activation)


class _Activation:
    """The kernels in torch's dispatcher, until :meth:`remove`."""

    def __init__(self) -> None:
        self._library: Any = torch.library.Library("aten", "IMPL")
        for name, kernel in (
            ("_flash_attention_forward", _forward),
            ("_flash_attention_forward_no_dropout_inplace", _forward_into),
            ("_flash_attention_backward", _backward),
        ):
            for key in ("CPU", "MPS"):
                self._library.impl(name, kernel, key)
        before = sdpa.installation()
        self._installed = before is None or "mps" not in before.devices
        if self._installed:
            devices = () if before is None else before.devices
            sdpa.install(devices=("mps", *devices), always=before is not None and before.always)

    def remove(self) -> None:
        """Take the kernels out; scaled dot product attention only if it came with them."""
        self._library._destroy()
        now = sdpa.installation()
        if not self._installed or now is None:
            return
        rest = tuple(device for device in now.devices if device != "mps")
        if rest:
            sdpa.install(devices=rest, always=now.always)
        else:
            sdpa.uninstall()


@torch.no_grad()  # autograd's own kernel for the operator has recorded it by now
def _forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    return_debug_mask: bool,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
    seqused_k: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    block_table: Tensor | None = None,
    num_splits: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """aten::_flash_attention_forward: (out, lse, random state, unused, unused)."""
    _check(query, dropout_p, return_debug_mask, num_splits)
    window = _window(window_size_left, window_size_right)
    options: Any = dict(
        softmax_scale=scale,
        causal=is_causal,
        window_size=window,
        alibi_slopes=alibi_slopes,
        return_lse=True,
    )
    if cum_seq_q is None:
        out, lse = flash_attn_func(query, key, value, **options)
    else:
        if cum_seq_k is None and block_table is not None and seqused_k is not None:
            cum_seq_k = cum_seq_q  # not read: of pages, the numbers of keys count
        out, lse = flash_attn_varlen_func(
            query,
            key,
            value,
            cum_seq_q,
            cum_seq_k,  # pyright: ignore[reportArgumentType] None is told in flashmetal's words
            max_q,
            max_k,
            seqused_k=seqused_k,
            block_table=block_table,
            **options,
        )
    state = torch.zeros(2, dtype=torch.uint64, device=query.device)
    return out, lse, state, query.new_empty(0), query.new_empty(0)


def _forward_into(out: Tensor, *arguments: Any, **options: Any) -> Tensor:
    """aten::_flash_attention_forward_no_dropout_inplace: writes out, returns the lse."""
    found, lse, *_ = _forward(*arguments, **options)
    out.copy_(found)
    return lse


def _backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    out: Tensor,
    logsumexp: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    rng_state: Tensor,
    unused: Tensor,
    *,
    scale: float | None = None,
    window_size_left: int | None = None,
    window_size_right: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """aten::_flash_attention_backward: the gradients of query, key and value."""
    _check(query, dropout_p, False, None)
    window = _window(window_size_left, window_size_right)
    grads = query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)
    tensors = grad_out, query, key, value, out, logsumexp, *grads
    options = 0.0, scale, is_causal, *window, 0.0, None, True
    if cum_seq_q is None or cum_seq_k is None:
        api_operators.flash_attn_backward(*tensors, *options)
    else:
        lengths = cum_seq_q, cum_seq_k, max_q, max_k
        api_operators.flash_attn_varlen_backward(*tensors, *lengths, *options)
    return grads


def _window(left: int | None, right: int | None) -> tuple[int, int]:
    return (-1 if left is None else left, -1 if right is None else right)


def _check(query: Tensor, dropout_p: float, debug_mask: bool, num_splits: int | None) -> None:
    """Refuse what varlen_attn never asks for, and splits that the plan would choose otherwise."""
    if dropout_p or debug_mask:
        raise NotImplementedError(
            "flashmetal: aten::_flash_attention_forward has no dropout and no debug mask here; "
            "call flashmetal.flash_attn_varlen_func"
        )
    if num_splits is not None and query.device.type != "cpu":
        raise NotImplementedError(
            f"flashmetal: varlen_attn with num_splits={num_splits} is not implemented on "
            f"{query.device.type}: the plan splits by the length; pass num_splits=None"
        )
