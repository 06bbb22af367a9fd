"""flash_attn's operators: one forward or one backward pass, of which autograd records nothing.

They are for code that calls the two passes itself, as context parallelism does: it merges the
outputs and log-sum-exps of several forward passes, and gives the merged ones to each backward pass.
Parameters, their order and the results are those of flash_attn 2.8's ``_flash_attn_forward`` and
its kin; lse is (B, Hq, Sq) or packed (Hq, total_q), and of a row without visible keys -inf.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .gradients import QueryRows
from .ops import attend, attention_backward, dropout_signs, with_rng_state
from .problem import AttentionProblem
from .request import AttentionInputs, Request, make_request
from .value_checks import check_gradient, check_rows

_Forward = tuple[Tensor, Tensor, Tensor, Tensor]


def flash_attn_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    return_softmax: bool,
) -> _Forward:
    """The forward pass of :func:`.api.flash_attn_func`.

    Returns:
        out, lse, the signs of the dropout (B, Hq, Sq, Sk) or, without them, an empty tensor, and
        the random state (2,) int64 for the backward pass.
    """
    window = window_size_left, window_size_right
    options = dropout_p, softmax_scale, causal, window, softcap, "auto", None
    request = make_request("_flash_attn_forward", *options)
    inputs = AttentionInputs(q, k, v, None, alibi_slopes)
    return _forward(inputs, request, return_softmax)


def flash_attn_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
) -> Tensor:
    """The backward pass: the gradients of q, k and v are written into dq, dk and dv.

    Args:
        dout: the gradient of out, (B, Sq, Hq, Dv).
        out: of the forward pass, or merged from several; so softmax_lse.
        rng_state: of the forward pass; needed with dropout.
        deterministic: accepted; every engine always is.

    Returns:
        The row sums of dout * out, (B, Hq, Sq) float32.
    """
    window = window_size_left, window_size_right
    options = dropout_p, softmax_scale, causal, window, softcap, "auto", None
    request = make_request("_flash_attn_backward", *options)
    inputs = AttentionInputs(q, k, v, None, alibi_slopes, rng_state=rng_state)
    return _backward(inputs, request, QueryRows(out, softmax_lse, dout), (dq, dk, dv))


def flash_attn_varlen_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int = -1,
    window_size_right: int = -1,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    return_softmax: bool = False,
    block_table: Tensor | None = None,
    leftpad_k: Tensor | None = None,
    seqused_k: Tensor | None = None,
    zero_tensors: bool = False,
) -> _Forward:
    """The forward pass of :func:`.api.flash_attn_varlen_func`; see :func:`flash_attn_forward`.

    ``zero_tensors`` is accepted: every row of the output is always written.
    """
    function = "_flash_attn_varlen_forward"
    if block_table is not None or leftpad_k is not None:
        raise NotImplementedError(
            f"{function}: block_table and leftpad_k are not implemented here; call "
            "flash_attn_varlen_func or flash_attn_with_kvcache"
        )
    window = window_size_left, window_size_right
    options = dropout_p, softmax_scale, causal, window, softcap, "auto", None
    request = make_request(function, *options, (max_seqlen_q, max_seqlen_k))
    lengths = cu_seqlens_q, cu_seqlens_k, seqused_k
    inputs = AttentionInputs(q, k, v, None, alibi_slopes, None, *lengths)
    return _forward(inputs, request, return_softmax)


def flash_attn_varlen_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    softmax_lse: Tensor,
    dq: Tensor | None,
    dk: Tensor | None,
    dv: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    dropout_p: float,
    softmax_scale: float | None,
    causal: bool,
    window_size_left: int,
    window_size_right: int,
    softcap: float,
    alibi_slopes: Tensor | None,
    deterministic: bool,
    rng_state: Tensor | None = None,
    zero_tensors: bool = False,
) -> Tensor:
    """The backward pass of packed sequences; returns (Hq, total_q). See the dense one."""
    window = window_size_left, window_size_right
    options = dropout_p, softmax_scale, causal, window, softcap, "auto", None
    request = make_request("_flash_attn_varlen_backward", *options, (max_seqlen_q, max_seqlen_k))
    inputs = AttentionInputs(q, k, v, None, alibi_slopes, None, cu_seqlens_q, cu_seqlens_k)
    inputs = inputs._replace(rng_state=rng_state)
    return _backward(inputs, request, QueryRows(out, softmax_lse, dout), (dq, dk, dv))


def _forward(inputs: AttentionInputs, request: Request, return_softmax: bool) -> _Forward:
    if request.dropout_p:
        inputs = with_rng_state(inputs, request)
    with torch.no_grad():
        o, lse = attend(inputs, request)
    state, signs = inputs.rng_state, inputs.q.new_empty(0)
    if request.dropout_p and return_softmax:
        signs = dropout_signs(inputs, request)
    if state is None:
        state = torch.zeros(2, dtype=torch.int64, device=o.device)
    return o, lse, signs, state


def _backward(
    inputs: AttentionInputs,
    request: Request,
    rows: QueryRows,
    gradients: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> Tensor:
    if request.dropout_p and inputs.rng_state is None:
        raise ValueError(
            f"{request.function}: dropout_p={request.dropout_p} needs rng_state, the last result "
            "of the forward pass, which says what was dropped"
        )
    targets = {n: x for n, x in zip("qkv", gradients, strict=True) if x is not None}
    with torch.no_grad():
        check_rows(rows, AttentionProblem.of(inputs, request), inputs, request)
        for name, target in targets.items():
            check_gradient(name, target, inputs, request)
        found = attention_backward(inputs, request, rows, tuple(targets))
        for target, gradient in zip(targets.values(), found, strict=True):
            target.copy_(gradient)
        return rows.delta().contiguous()
